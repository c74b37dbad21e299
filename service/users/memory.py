"""Users in the memory of one process: for tests and trials. Other workers do not see them."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Mapping, Sequence
from typing import Any

from service.contract.errors import UnknownOption
from service.users._protocol import KEPT_RECENT, Click, User, UserId


def open(url: str, forget: int) -> MemoryUsers:  # noqa: A001 - every option's entry is called so
    """Users at `memory:`, none at first.

    Raises:
        UnknownOption: the URL says more.
    """
    if url != "memory:":
        raise UnknownOption("the URL of users in memory is memory:, and no more")
    return MemoryUsers(forget)


class MemoryUsers:
    """Users of one event loop."""

    def __init__(self, forget: int = 0) -> None:
        self.profiles: dict[UserId, Mapping[str, Any]] = {}
        self._recent: dict[UserId, list[Click]] = {}
        self._until: dict[UserId, float] = {}
        self._forget = forget

    async def read(self, user: UserId) -> User | None:
        """What is known of a user; None for nothing."""
        self._let_go(user)
        if user not in self.profiles and user not in self._recent:
            return None
        return User(self.profiles.get(user, {}), tuple(self._recent.get(user, ())))

    async def append(self, clicks: Mapping[UserId, Sequence[Click]]) -> None:
        """Add to the recent clicks of users."""
        for user, added in clicks.items():
            self._let_go(user)
            recent = self._recent.setdefault(user, [])
            for click in added:
                if click not in recent:
                    insort(recent, click, key=lambda known: known.time)
            del recent[:-KEPT_RECENT]
            if self._forget:
                self._until[user] = time.monotonic() + self._forget

    async def close(self) -> None:
        """Nothing is held open."""

    def _let_go(self, user: UserId) -> None:
        if self._until.get(user, float("inf")) <= time.monotonic():
            for known in (self.profiles, self._recent, self._until):
                known.pop(user, None)

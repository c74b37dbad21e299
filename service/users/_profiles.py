"""`Profiles`: users' fields as requests see them, at hand for a moment, and never worth a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Literal

from service.contract.errors import StoreError
from service.telemetry import Metrics
from service.users._protocol import Damaged, UserId, Users, user_id

Fields = Mapping[str, Any]
Fit = Callable[[Mapping[str, Any]], tuple[Fields, list[str]]]
"""From a profile to what of it a model can read, and the names of its fields whose values it cannot."""

_MOST = 20_000
"""Users that are at hand at once."""
_LATES = 3
"""Answers in a row that come too late before the store counts as lost; one may be the loop's fault."""
_GIVE_UP = 1.0
"""Seconds that a read may take altogether, for which nobody waits any more."""
_PAUSE = 1.0
"""Seconds for which a lost store is not asked; then one request finds out whether it is back."""
_NOTHING: Fields = {}


class Profiles:
    """Merges what is kept of a user under what a request gives.

    A store that does not answer costs some requests the time that is waited for it, and the others nothing:
    they are scored without it, and counted.
    """

    def __init__(self, users: Users, fit: Fit, metrics: Metrics, *, keep: float, timeout: float) -> None:
        """Profiles of no user yet.

        Args:
            users: where they are kept.
            fit: what the model can read of a profile.
            metrics: where requests that go without are counted.
            keep: seconds for which a user stays at hand; 0 reads anew for each request.
            timeout: seconds that a request waits for the store.
        """
        self._users, self._fit, self._metrics = users, fit, metrics
        self._keep, self._timeout = keep, timeout
        self._at_hand: dict[UserId, tuple[float, Fields]] = {}
        self._reading: dict[UserId, asyncio.Task[Fields | None]] = {}
        self._late = 0
        self._lost = False
        self._again = 0.0

    def now(self, given: Fields) -> Fields | None:
        """A request's user with what is kept; None where the store has to be asked, by `merged`.

        Args:
            given: the user's fields in the request. Theirs count, but not those that are null.
        """
        user = user_id(given.get("id"))
        if user is None:
            return given
        found = self._at_hand.get(user)
        if found is not None and found[0] > monotonic():
            return _merge(found[1], given)
        if self._lost and monotonic() < self._again:
            self._without("paused")
            return given
        return None

    async def merged(self, given: Fields, seconds: float) -> Fields:
        """A request's user with what is kept, asked for if it must be, in one read.

        Args:
            given: the user's fields in the request.
            seconds: that the request has left.
        """
        found = self.now(given)
        user = user_id(given.get("id"))
        if found is not None or user is None:
            return given if found is None else found
        if seconds <= 0:
            self._without("late")
            return given
        task = self._reading.get(user)
        if task is None:
            # Others go without while this one finds out.
            self._again = monotonic() + _PAUSE
            task = self._reading[user] = asyncio.create_task(self._read(user), name="read a user")
        # Who waits may give up; the read goes on, and is at hand for the next.
        await asyncio.wait({task}, timeout=min(seconds, self._timeout))
        if task.done():
            kept = task.result()
            if kept is None:
                self._without("failed")
            return _merge(kept or _NOTHING, given)
        self._without("late")
        if seconds >= self._timeout:
            self._late += 1
            if self._late >= _LATES:
                self._lose()
        return given

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, user: UserId) -> Fields | None:
        """What is kept of a user; None where the store does not answer."""
        try:
            async with asyncio.timeout(_GIVE_UP):
                found = await self._users.read(user)
        except Damaged:
            found = None
            self._without("damaged")
        except (StoreError, TimeoutError):
            self._lose()
            return None
        finally:
            self._reading.pop(user, None)
        self._late, self._lost = 0, False
        fields, refused = (_NOTHING, []) if found is None else self._fit(found.profile)
        for name in refused:
            self._metrics.user_values_refused.labels(name).inc()
        if self._keep:
            self._at_hand.pop(user, None)  # so that the first is the one that ends first
            self._at_hand[user] = monotonic() + self._keep, fields
            if len(self._at_hand) > _MOST:
                del self._at_hand[next(iter(self._at_hand))]
        return fields

    def _lose(self) -> None:
        self._lost = True
        self._again = monotonic() + _PAUSE

    def _without(self, reason: Literal["damaged", "failed", "late", "paused"]) -> None:
        self._metrics.users_missed.labels(reason).inc()


def _merge(kept: Fields, given: Fields) -> Fields:
    if not kept:
        return given
    if None in given.values():
        return {**kept, **{name: value for name, value in given.items() if value is not None}}
    return {**kept, **given}

"""`Users`: where what is known of users is kept, over all domains and for every bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.contract.errors import StoreError

UserId = str
"""In a request 42 and "42" are one user."""

KEPT_RECENT = 50
"""Clicks of a user that are kept."""
LONGEST_ID = 256
"""Characters of a user's id; nothing is kept of one whose id is longer."""


class Damaged(StoreError):
    """What is kept of one user cannot be read; of others it can."""


@dataclass(frozen=True, slots=True)
class Click:
    """An item that a user clicked."""

    domain: str
    item: int | str
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class User:
    """What is known of one user."""

    profile: Mapping[str, Any]
    """Values by field name, as another program wrote them: no schema was asked."""
    recent: Sequence[Click]
    """The last clicks over all domains, by time, oldest first."""


class Users(Protocol):
    """Users by id. Every method raises `StoreError` when the store does not answer.

    An option is a module with `open(url: str, forget: int) -> Users`, named like the URL's scheme; `forget`
    is the seconds after which a user without a click is forgotten, 0 for never.
    """

    async def read(self, user: UserId) -> User | None:
        """What is known of a user, in one round trip; None for nothing.

        Raises:
            Damaged: what is kept of this user cannot be read.
        """
        ...

    async def append(self, clicks: Mapping[UserId, Sequence[Click]]) -> None:
        """Add to the recent clicks of users, each user's in one step.

        The order is that of the clicks' times, whenever they come, and the last `KEPT_RECENT` stay. A click
        that is there already is not added, so what may have failed in the middle can be done again.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def user_id(given: object) -> UserId | None:
    """A request's `user.id` as users are kept under; None for what nothing can be kept under."""
    if type(given) is str:
        text = given
    elif type(given) is int and abs(given) < 2**63:  # a longer number could not even be written out
        text = str(given)
    else:
        return None
    return text if 0 < len(text) <= LONGEST_ID and _is_unicode(text) else None


def _is_unicode(text: str) -> bool:
    """Half of a surrogate pair can stand in JSON, and in no file or key."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

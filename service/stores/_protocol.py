"""`PackStore`: where packs live."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Domain = str
Version = str
Pointers = Mapping[Domain, Version | None]
"""By domain, the version that is live; None for a domain that was retired."""

KEPT_HISTORY = 100
"""Promotions of a domain that a store remembers."""
_LATEST = 1e11
"""Seconds since 1970; a number that is larger is no time."""


@dataclass(frozen=True)
class Promotion:
    """One step of a domain's history."""

    version: Version | None
    """What became live; None retired the domain."""
    time: float
    """Seconds since 1970."""
    run: str = ""
    """Where the pack came from, in the words of who promoted it."""
    by: str = ""
    """Who promoted it."""

    @classmethod
    def read(cls, told: Any) -> Promotion:  # noqa: ANN401 - whatever JSON held
        """The step that JSON tells of.

        Raises:
            KeyError: it has no version, or no time.
            TypeError: a part of it is of another type.
            ValueError: a text of it is none that can be written down, or its time none that there is.
        """
        if not isinstance(told, dict):
            raise TypeError("not an object")
        version, time, run, by = told["version"], told["time"], told.get("run", ""), told.get("by", "")
        texts = [text for text in (version, run, by) if text is not None]
        if not {*map(type, texts)} <= {str} or type(time) not in {int, float}:
            raise TypeError("not a version, a time and texts")
        "".join(texts).encode()
        if not 0 <= time <= _LATEST:
            raise ValueError("not a time")
        return cls(version, float(time), run or "", by or "")


@dataclass(frozen=True)
class Kept:
    """A pack that a store has."""

    domain: Domain
    version: Version
    nbytes: int


class PackStore(Protocol):
    """Immutable packs by domain and version, and one pointer a domain to the version that is live.

    A store is opened for one bundle: packs of others cannot be seen through it. Item tables are kept as packs
    are, under two names that no domain can have (`service.stores._names`). Every method raises `StoreError`
    when the store does not answer.

    An option is a module with `open(url: str, bundle: str) -> PackStore`, named like the URL's scheme.
    """

    async def live(self) -> Pointers:
        """What is live in every domain that ever was promoted."""
        ...

    async def fetch(self, domain: Domain, version: Version, most: int | None = None) -> bytes:
        """A pack's bytes, as put; who reads them compares them with the version.

        Args:
            domain: whose.
            version: which.
            most: bytes that the reader takes.

        Raises:
            UnknownVersion: the store does not have it.
            PackError: it has more than `most` bytes; they were not read.
        """
        ...

    async def put(self, domain: Domain, data: bytes) -> Version:
        """Keep a pack and return its version. Putting the same bytes again changes nothing."""
        ...

    async def promote(
        self, versions: Pointers, *, run: str = "", by: str = "", expected: Pointers | None = None
    ) -> None:
        """Make these versions live in one step: a reader sees all of them or none. None retires a domain.

        Args:
            versions: what shall be live.
            run: where the packs came from, for the history.
            by: who promotes, for the history.
            expected: what must be live in these domains for the step to happen; None where nothing may be.

        Raises:
            UnknownVersion: one of them was never put; nothing is promoted.
            Conflict: something else is live than expected; nothing is promoted.
        """
        ...

    async def history(self, domain: Domain) -> Sequence[Promotion]:
        """The last promotions of a domain, oldest first; at most `KEPT_HISTORY`."""
        ...

    async def kept(self) -> Sequence[Kept]:
        """Every pack there is, by domain and version."""
        ...

    async def remove(self, packs: Iterable[tuple[Domain, Version]], spare: int) -> Sequence[Kept]:
        """Remove packs, and return those removed.

        A version that is live, or among the last `spare` distinct versions of its domain's history, stays,
        also if it is promoted in the same moment.
        """
        ...

    def changes(self) -> AsyncGenerator[Pointers, None]:
        """What is live now, whole, and after it every later promotion, for as long as it is read.

        A reader that lost the connection (`StoreError`) calls it again, and so misses nothing. Promotions
        that follow each other fast may come as one. Closing the generator releases what it holds.
        """
        ...

    async def close(self) -> None:
        """Release the connection."""
        ...

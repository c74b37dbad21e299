"""`PackStore`: where packs live."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

Domain = str
Version = str


class PackStore(Protocol):
    """Immutable packs by domain and version, and one pointer a domain to the version that is live.

    A store is opened for one bundle: packs of others cannot be seen through it. Every method raises
    `StoreError` when the store does not answer.

    An option is a module with `open(url: str, bundle: str) -> PackStore`, named like the URL's scheme.
    """

    async def live(self) -> Mapping[Domain, Version]:
        """The live version of every domain."""
        ...

    async def fetch(self, domain: Domain, version: Version) -> bytes:
        """A pack's bytes, as put; who reads them compares them with the version.

        Raises:
            UnknownVersion: the store does not have it.
        """
        ...

    async def put(self, domain: Domain, data: bytes) -> Version:
        """Keep a pack and return its version. Putting the same bytes again changes nothing."""
        ...

    async def promote(self, versions: Mapping[Domain, Version]) -> None:
        """Make these versions live in one step: a reader sees all of them or none.

        Raises:
            UnknownVersion: one of them was never put; nothing is promoted.
        """
        ...

    def changes(self) -> AsyncGenerator[Mapping[Domain, Version], None]:
        """What is live now, whole, and after it every later promotion, for as long as it is read.

        A reader that lost the connection (`StoreError`) calls it again, and so misses nothing. Promotions
        that follow each other fast may come as one. Closing the generator releases what it holds.
        """
        ...

    async def close(self) -> None:
        """Release the connection."""
        ...

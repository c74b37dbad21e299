"""A store without a process or a disk, which a test can hold up, cut off, and look into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence

from service.contract.errors import Conflict, PackError, StoreError, UnknownVersion
from service.contract.pack import DomainPack, version
from service.stores._protocol import Domain, Kept, Pointers, Promotion, Version


class MemoryStore:
    """A `PackStore` of one event loop."""

    def __init__(self) -> None:
        self.packs: dict[tuple[Domain, Version], bytes] = {}
        self.pointers: dict[Domain, Version | None] = {}
        self.told: dict[Domain, list[Promotion]] = {}
        self.down = False
        """Every call ends in `StoreError` while it is set; who follows hears of it."""
        self.fetches: list[tuple[Domain, Version]] = []
        """What was asked for, in order."""
        self.gates: dict[Domain, asyncio.Event] = {}
        """A domain's packs are not given out before its gate is set."""
        self.unfetchable: set[Domain] = set()
        """Domains whose packs end in `StoreError`, while all else is well."""
        self.tells_all = False
        """Each promotion is told with all that is live, as a folder's are."""
        self._followers: list[asyncio.Queue[Pointers | None]] = []

    async def live(self) -> Pointers:
        self._up()
        return dict(self.pointers)

    async def fetch(self, domain: Domain, version: Version, most: int | None = None) -> bytes:
        self.fetches.append((domain, version))
        if domain in self.gates:
            await self.gates[domain].wait()
        await asyncio.sleep(0)
        self._up()
        if domain in self.unfetchable:
            raise StoreError(f"{domain} cannot be fetched")
        if (domain, version) not in self.packs:
            raise UnknownVersion(f"there is no version {version} of {domain}")
        data = self.packs[domain, version]
        if most is not None and len(data) > most:
            raise PackError(f"version {version} of {domain} has more than {most} bytes")
        return data

    async def put(self, domain: Domain, data: bytes) -> Version:
        self._up()
        self.packs.setdefault((domain, version(data)), data)
        return version(data)

    async def promote(
        self, versions: Pointers, *, run: str = "", by: str = "", expected: Pointers | None = None
    ) -> None:
        self._up()
        for domain, promoted in versions.items():
            if promoted is not None and (domain, promoted) not in self.packs:
                raise UnknownVersion(f"there is no version {promoted} of {domain}")
        for domain, wanted in (expected or {}).items():
            if self.pointers.get(domain) != wanted:
                raise Conflict(f"something else is live for {domain}")
        self.point(versions)

    async def history(self, domain: Domain) -> Sequence[Promotion]:
        self._up()
        return list(self.told.get(domain, ()))

    async def kept(self) -> Sequence[Kept]:
        self._up()
        return [Kept(domain, kept, len(data)) for (domain, kept), data in sorted(self.packs.items())]

    async def remove(self, packs: Iterable[tuple[Domain, Version]], spare: int) -> Sequence[Kept]:
        self._up()
        removed = []
        for domain, old in packs:
            steps = [step.version for step in reversed(self.told.get(domain, ())) if step.version]
            if old == self.pointers.get(domain) or old in list(dict.fromkeys(steps))[:spare]:
                continue
            if (domain, old) in self.packs:
                removed.append(Kept(domain, old, len(self.packs.pop((domain, old)))))
        return removed

    async def changes(self) -> AsyncGenerator[Pointers, None]:
        self._up()
        heard: asyncio.Queue[Pointers | None] = asyncio.Queue()
        self._followers.append(heard)
        try:
            yield dict(self.pointers)
            while True:
                pointers = await heard.get()
                if pointers is None:
                    raise StoreError("the connection was lost")
                yield pointers
        finally:
            self._followers.remove(heard)

    async def close(self) -> None:
        pass

    def point(self, versions: Pointers) -> None:
        """Make versions live, whether they are there or not."""
        for domain, promoted in versions.items():
            self.pointers[domain] = promoted
            self.told.setdefault(domain, []).append(Promotion(promoted, time.time()))
        for heard in self._followers:
            heard.put_nowait(dict(self.pointers if self.tells_all else versions))

    def publish(self, *packs: DomainPack) -> dict[Domain, Version]:
        """Put and promote in one step; the versions by domain."""
        versions = {}
        for pack in packs:
            data = pack.to_bytes()
            versions[pack.domain] = version(data)
            self.packs[pack.domain, version(data)] = data
        self.point(versions)
        return versions

    def cut(self) -> None:
        """Be down from now on, and let followers know."""
        self.down = True
        self.disconnect()

    def disconnect(self) -> None:
        """Let followers know that the connection was lost."""
        for heard in self._followers:
            heard.put_nowait(None)

    def _up(self) -> None:
        if self.down:
            raise StoreError("the store is down")

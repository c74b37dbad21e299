"""`Loader`: from a domain and a version to a resident pack, or the reason why not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.contract.bundle import Bundle
from service.contract.errors import PackError, StoreError, UnknownVersion
from service.engines._protocol import Engine
from service.resident import Resident, load, parse
from service.shelf import Shelf
from service.stores._names import is_domain
from service.stores._protocol import Domain, PackStore, Version


@dataclass(frozen=True)
class Refusal:
    """A version that is live in the store and is not served, and why."""

    version: Version
    reason: str
    final: bool
    """It is the pack, which never changes, that is wrong: there is no use in looking again."""


Loaded = Resident | Refusal


class Loader:
    """Makes packs resident: from the shelf where they lie there, else from the store.

    Whatever its way, a pack is checked and its golden rows are scored before it is given out.
    """

    def __init__(
        self, store: PackStore, engine: Engine, bundle: Bundle, shelf: Shelf, tolerance: float
    ) -> None:
        """A loader.

        Args:
            store: where packs come from.
            engine: where they are loaded.
            bundle: what they must belong to.
            shelf: where they are kept.
            tolerance: how far golden rows may be off, in probability.
        """
        self._store, self._engine, self._bundle, self._shelf = store, engine, bundle, shelf
        self._tolerance = tolerance
        self.nbytes = bundle.manifest.pack_bytes
        """Bytes that each pack takes."""

    async def load(self, pairs: Sequence[tuple[Domain, Version]]) -> list[Loaded]:
        """Packs, loaded, or why not, in the order asked for.

        Raises:
            StoreError: the store does not answer.
        """
        found = await asyncio.to_thread(self.kept, pairs)
        missing = [pair for pair, have in zip(pairs, found, strict=True) if have is None]
        try:
            async with asyncio.TaskGroup() as group:
                fetched = {pair: group.create_task(self._fetch(*pair)) for pair in missing}
        except* StoreError as errors:
            discard(found)
            raise errors.exceptions[0] from None
        # In a thread: hashing and scoring would hold up this loop's requests.
        admitted = await asyncio.to_thread(
            lambda: {pair: self._admit(*pair, task.result()) for pair, task in fetched.items()}
        )
        return [have or admitted[pair] for pair, have in zip(pairs, found, strict=True)]

    def kept(self, pairs: Iterable[tuple[Domain, Version]]) -> list[Loaded | None]:
        """Those of some packs that are on the shelf."""
        return [self._from_shelf(*pair) for pair in pairs]

    async def _fetch(self, domain: Domain, version: Version) -> bytes | Refusal:
        if not is_domain(domain):
            return Refusal(version, f"{domain!r} is not a domain's name", final=True)
        try:
            return await self._store.fetch(domain, version, self._bundle.manifest.most_pack_bytes)
        except UnknownVersion as error:
            return Refusal(version, str(error), final=False)
        except PackError as error:
            return Refusal(version, str(error), final=True)

    def _from_shelf(self, domain: Domain, version: Version) -> Loaded | None:
        # Both become parts of a path, and come from whoever can write to the store.
        if not is_domain(domain) or not version.isalnum():
            return None
        kept = self._shelf.find(domain, version)
        if kept is None:
            return None
        try:
            kept.check(self._bundle.manifest)
            return load(kept, version, self._engine, self._tolerance)
        except PackError:
            # What lies there was admitted once, so it may not be the pack that is at fault.
            self._shelf.drop(domain, version)
            return None

    def _admit(self, domain: Domain, version: Version, data: bytes | Refusal) -> Loaded:
        if isinstance(data, Refusal):
            return data
        try:
            pack = parse(data, domain, version, self._bundle)
            fresh = load(pack, version, self._engine, self._tolerance)
        except PackError as error:
            return Refusal(version, str(error), final=True)
        except Exception as error:  # noqa: BLE001 - what nobody thought of is no reason to follow no more
            line = (str(error).splitlines() or [""])[0]
            return Refusal(version, f"it cannot be loaded: {type(error).__name__}: {line}", final=False)
        # Only now that it has passed: nothing else is to lie on the shelf.
        kept = self._shelf.keep(version, pack)
        if kept is pack:
            return fresh
        fresh.supersede()
        return Resident(version, kept, self._engine)


def discard(loaded: Iterable[Loaded | None]) -> None:
    """Release what was loaded and will not serve."""
    for each in loaded:
        if isinstance(each, Resident):
            each.supersede()

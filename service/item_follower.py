"""`ItemFollower`: the item table that is live, served as soon as it was fetched and checked.

A table becomes visible by one assignment, between two requests. One that is refused, or a store that does not
answer, takes nothing away: what served before serves on.

All of the work is done in a thread, on a connection of its own: a table has hundreds of megabytes, and the
loop has requests to answer.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from itertools import islice

import structlog

from service import editions
from service.contract.bundle import Bundle
from service.contract.edition import Arrays
from service.contract.errors import ItemsError, StoreError, UnknownVersion
from service.engines._protocol import Engine
from service.features import RequestEncoder
from service.item_shelf import ItemShelf
from service.items import Items
from service.loading import Refusal
from service.stores._names import ITEMS
from service.stores._protocol import PackStore, Version
from service.telemetry import Metrics

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 30.0
"""Seconds before it is tried again: the first time, and at most."""
_LOOK = 0.1
"""Seconds between two looks at whether another worker has fetched it."""
_LOOK_BACK = 5
"""Versions of the history that are tried where what is live is refused and nothing served before."""

log = structlog.get_logger()


class ItemFollower:
    """Keeps `encoder.items` what the store says is live. It belongs to one event loop."""

    def __init__(
        self,
        bundle: Bundle,
        encoder: RequestEncoder,
        engine: Engine,
        shelf: ItemShelf,
        metrics: Metrics,
        *,
        connect: Callable[[], PackStore],
        tolerance: float,
        most_bytes: int,
    ) -> None:
        """Begin with the bundle's own table.

        Args:
            bundle: what tables must belong to.
            encoder: what reads them.
            engine: what scores some of their rows.
            shelf: where they are kept.
            metrics: what is counted.
            connect: opens the store, for a loop of its own.
            tolerance: how far scores by item halves may be from those by fields, in probability.
            most_bytes: that a table may have.
        """
        self.live: Version | None = None
        """What the store last said; None for the bundle's own."""
        self.refused: Refusal | None = None
        """What is live and is not served."""
        self.coming = False
        """Whether what was live at the start has still to be loaded, or refused."""
        self.since = time.time()
        """When what serves became visible."""
        self._bundle, self._encoder, self._engine, self._shelf = bundle, encoder, engine, shelf
        self._metrics, self._connect = metrics, connect
        self._tolerance, self._most = tolerance, most_bytes
        self._told = asyncio.Event()
        self._heard = False
        self._closing = threading.Event()

    @property
    def serving(self) -> Items:
        """What answers."""
        return self._encoder.items

    async def start(self) -> None:
        """Serve what served last time, if it is on the shelf, until the store says what is live."""
        version = await asyncio.to_thread(self._shelf.remembered)
        if version is not None:
            loaded = await asyncio.to_thread(self._from_shelf, version)
            if isinstance(loaded, Items):
                await self._serve(loaded)

    def want(self, version: Version | None) -> None:
        """Take what the store says is live; `follow` does the rest."""
        self.live = version
        if self.refused is not None and self.refused.version != version:
            self.refused = None
        if not self._heard:
            self._heard = True
            self.coming = not self._done()
        if not self._done():
            self._told.set()

    async def follow(self) -> None:
        """Load what is wanted until cancelled."""
        wait = _FIRST_WAIT
        while True:
            try:
                async with asyncio.timeout(None if self._done() else wait):
                    await self._told.wait()
                wait = _FIRST_WAIT
            except TimeoutError:
                # Jitter, or a fleet would come back to its store all at once.
                wait = min(2 * wait, _LONGEST_WAIT) * random.uniform(0.75, 1.0)  # noqa: S311
            self._told.clear()
            try:
                await self._take(self.live)
            except StoreError as error:
                log.warning("the item table cannot be fetched", items=self.live, reason=str(error))
            except Exception:
                log.exception("item tables are no longer followed")
                raise
            self.coming = False

    def close(self) -> None:
        """Let a thread that still fetches end soon."""
        self._closing.set()

    def _done(self) -> bool:
        """Whether there is nothing to be done about what is live, as far as it is known."""
        final = self.refused is not None and self.refused.final
        return not self._heard or final or self.serving.version == self.live

    async def _take(self, version: Version | None) -> None:
        if version == self.serving.version:
            return
        if version is None:
            await self._serve(Items.own(self._bundle))
            return
        loaded = await asyncio.to_thread(self._load, version)
        if isinstance(loaded, Refusal):
            self._refuse(loaded)
            if self.serving.version is not None or not loaded.final:
                return
            # A process that starts late then answers as those do that served before it was live.
            earlier = await asyncio.to_thread(self._load_earlier, version)
            if earlier is None:
                return
            loaded = earlier
        if version == self.live:  # else another was promoted meanwhile
            await self._serve(loaded)

    async def _serve(self, items: Items) -> None:
        """Let a table answer from the next request on."""
        self._encoder.items = items
        self.since = time.time()
        if items.version == self.live:  # else a refusal of what is live stands
            self.refused = None
        self._metrics.items_loaded.inc()
        self._metrics.items_since.set(self.since)
        log.info("item table serves", items=items.version or "the bundle's own", rows=len(items.table))
        await asyncio.to_thread(self._shelf.remember, items.version)

    def _refuse(self, refusal: Refusal) -> None:
        known, self.refused = self.refused, refusal
        if known != refusal:
            self._metrics.items_refused.inc()
            log.error("item table refused", items=refusal.version, reason=refusal.reason)

    # What follows runs in threads.

    def _load(self, version: Version) -> Items | Refusal:
        """A table from the shelf, or from the store.

        Raises:
            StoreError: the store does not answer.
        """
        while not self._closing.is_set():
            found = self._from_shelf(version)
            if found is not None:
                return found
            with self._shelf.claimed() as ours:
                if ours:
                    # Another may have put it there just before.
                    return self._from_shelf(version) or asyncio.run(self._fetch(version))
            self._closing.wait(_LOOK)
        raise StoreError("the service stops")

    def _load_earlier(self, refused: Version) -> Items | None:
        """What was live before a table that is refused; not beyond a time when the bundle's own was."""
        for version in asyncio.run(self._history(refused)):
            loaded = self._load(version)
            if isinstance(loaded, Items):
                return loaded
        return None

    async def _history(self, refused: Version) -> list[Version]:
        store = self._connect()
        try:
            steps = [step.version for step in reversed(await store.history(ITEMS))]
        finally:
            await store.close()
        since = steps[: steps.index(None)] if None in steps else steps
        found = dict.fromkeys(version for version in since if version and version != refused)
        return list(islice(found, _LOOK_BACK))

    def _from_shelf(self, version: Version) -> Items | Refusal | None:
        found = self._shelf.find(version)
        if found is None:
            return None
        edition, arrays = found
        try:
            edition.check(self._bundle, self._most)
            return self._checked(version, arrays)
        except ItemsError as error:
            return Refusal(version, str(error), final=True)

    async def _fetch(self, version: Version) -> Items | Refusal:
        store = self._connect()
        try:
            edition = await editions.read(store, version)
            edition.check(self._bundle, self._most)
            try:
                with self._shelf.adding(version) as folder:
                    await editions.save(store, edition, folder)
            except OSError as error:
                # A copy of its own costs memory, and a service that stops following costs more.
                log.warning("an item table cannot be kept on disk, and takes memory", reason=str(error))
                arrays: Arrays = await editions.arrays(store, edition, edition.arrays.keys())
                return self._checked(version, arrays)
        except UnknownVersion as error:
            return Refusal(version, str(error), final=False)
        except ItemsError as error:
            return Refusal(version, str(error), final=True)
        finally:
            await store.close()
        return self._from_shelf(version) or Refusal(version, "it was lost on disk", final=False)

    def _checked(self, version: Version, arrays: Arrays) -> Items:
        items = Items.checked(version, arrays, self._bundle)
        items.score(self._bundle, self._engine, self._tolerance)
        return items

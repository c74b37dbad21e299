"""`PackCache`: the live packs, resident, as the store promotes them.

A pack becomes visible by one assignment, after it was fetched and admitted. A pack that is not admitted
is refused, and the one before it serves on. A store that does not answer, or has lost what it had, takes
nothing away: only a good pack replaces a pack.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from service.contract.errors import PackError, StoreError, UnknownVersion
from service.contract.manifest import Manifest
from service.engines._protocol import Engine
from service.resident import Resident, admit
from service.stores._protocol import Domain, PackStore, Version
from service.telemetry import Metrics

_RECONCILE = 60.0
"""Seconds after which everything live is looked at anew, whatever the store announced."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
"""Seconds before a store that did not answer is asked again: the first time, and at most."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Refusal:
    """A version that is live in the store and is not served, and why."""

    version: Version
    reason: str


class PackCache:
    """Follows a store."""

    def __init__(
        self, store: PackStore, engine: Engine, manifest: Manifest, tolerance: float, metrics: Metrics
    ) -> None:
        self.resident: dict[Domain, Resident] = {}
        """What serves."""
        self.live: dict[Domain, Version] = {}
        """What the store last said."""
        self.refused: dict[Domain, Refusal] = {}
        """What is live and could not be loaded."""
        self.settled = asyncio.Event()
        """Set once everything that was live at the start was loaded or refused."""
        self._store, self._engine, self._manifest = store, engine, manifest
        self._tolerance = tolerance
        self._metrics = metrics
        self._wait = _FIRST_WAIT

    async def follow(self) -> None:
        """Keep up with the store until cancelled."""
        while True:
            try:
                await self._follow_for(_RECONCILE)
            except StoreError as error:
                # Jitter, or a fleet would come back to its store all at once.
                wait = self._wait * random.uniform(0.5, 1.0)  # noqa: S311
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
                log.warning("the store does not answer", reason=str(error), again_in_seconds=round(wait, 2))
                await asyncio.sleep(wait)

    def close(self) -> None:
        """Release every pack."""
        for resident in self.resident.values():
            resident.supersede()
        self.resident.clear()

    async def _follow_for(self, seconds: float) -> None:
        """Take what is live, then what is promoted. Calling it again looks at everything again."""
        until = asyncio.get_running_loop().time() + seconds
        async with aclosing(self._store.changes()) as changes:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        versions = await anext(changes)
                except TimeoutError:
                    return
                await self._take(versions)
                self._wait = _FIRST_WAIT
                self._metrics.store_contact.set_to_current_time()
                self.settled.set()

    async def _take(self, versions: Mapping[Domain, Version]) -> None:
        self.live.update(versions)
        for domain, version in versions.items():
            serving = self.resident.get(domain)
            if serving is not None and serving.version == version:
                self.refused.pop(domain, None)
                continue
            try:
                await self._replace(domain, version)
            except (PackError, UnknownVersion) as error:
                self._refuse(domain, Refusal(version, str(error)))

    def _refuse(self, domain: Domain, refusal: Refusal) -> None:
        self.refused[domain] = refusal
        self._metrics.packs_refused.labels(domain).inc()
        log.error("pack refused", domain=domain, pack=refusal.version, reason=refusal.reason)

    async def _replace(self, domain: Domain, version: Version) -> None:
        data = await self._store.fetch(domain, version)
        # In a thread: hashing and scoring a large pack would hold up this loop's requests.
        fresh = await asyncio.to_thread(
            admit,
            data,
            domain,
            version,
            manifest=self._manifest,
            engine=self._engine,
            tolerance=self._tolerance,
        )
        before = self.resident.get(domain)
        self.resident[domain] = fresh
        self.refused.pop(domain, None)
        if before is not None:
            before.supersede()
        self._metrics.packs_loaded.labels(domain).inc()
        self._metrics.pack_since.labels(domain).set(fresh.since)
        log.info("pack serves", domain=domain, pack=version, bytes=fresh.handle.nbytes)

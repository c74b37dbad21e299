"""`Runtime`: the objects of one running service, put together once."""

from __future__ import annotations

import asyncio
import gc
import resource
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.contract import plugins
from service.contract.bundle import Bundle
from service.contract.pack import GENERAL
from service.engines._protocol import Engine
from service.features import RequestEncoder
from service.item_follower import ItemFollower
from service.item_shelf import ItemShelf
from service.loading import Loader
from service.packs import PackCache
from service.routing import Router
from service.scoring import Ranking, Scorer
from service.settings import Settings
from service.shelf import Shelf
from service.stores._open import open_store
from service.stores._protocol import PackStore
from service.telemetry import Metrics
from service.users._open import open_users
from service.users._profiles import Profiles
from service.users._protocol import Users

_LOOK = 1.0
"""Seconds between two measurements of what is not counted as it happens."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Runtime:
    """A service that follows its store."""

    settings: Settings
    bundle: Bundle
    metrics: Metrics
    store: PackStore
    engine: Engine
    packs: PackCache
    items: ItemFollower
    router: Router
    scorer: Scorer
    users: Users | None
    """None where nothing is kept of users."""
    profiles: Profiles | None
    followers: Sequence[asyncio.Task[None]]

    @property
    def alive(self) -> bool:
        """Whether promotions are still followed; nothing but a fault of ours ends that."""
        return not any(follower.done() for follower in self.followers)

    @property
    def ready(self) -> bool:
        """Whether what is declared answers, under the item table that was live at the start."""
        return not self.router.missing() and not self.items.coming

    @property
    def domains(self) -> list[str]:
        """Every domain that the bundle declares or the store names, sorted; the general one is among them."""
        return sorted({GENERAL, *self.bundle.manifest.domains, *self.packs.live})

    def observe(self, ranking: Ranking, candidates: int) -> None:
        """Take the measures of one ranking."""
        self.metrics.candidates.observe(candidates)
        self.metrics.features_seconds.observe(ranking.features_seconds)
        self.metrics.engine_seconds.observe(ranking.engine_seconds)
        for field, unknown in ranking.unknown.items():
            if unknown:
                self.metrics.unknown_values.labels(field).inc(unknown)


def open_engine(settings: Settings, bundle: Bundle) -> Engine:
    """The engine that the settings name, on a bundle's graph.

    Raises:
        UnknownOption: there is none of this name.
        BundleError: it cannot read the graph.
    """
    engine: Engine = plugins.load("service.engines", settings.engine).open(bundle, settings.threads)
    return engine


@asynccontextmanager
async def run(settings: Settings) -> AsyncGenerator[Runtime, None]:
    """Put a service together, and follow the store until the block ends.

    A store that does not answer is no reason not to start: the service is then alive and not ready.

    Raises:
        BundleError: the bundle cannot be served.
        UnknownOption: there is no such engine or store.
    """
    _allow_open_files()
    metrics = Metrics()
    bundle = Bundle.open(settings.bundle)
    for domain in bundle.manifest.domains:
        metrics.label(domain)
    engine = open_engine(settings, bundle)
    store = open_store(settings.store, bundle.manifest.bundle)
    users = open_users(settings.users, settings.users_forget_seconds) if settings.users else None
    async with AsyncExitStack() as stack:
        folder = settings.shelf or Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="mdctr-shelf-", ignore_cleanup_errors=True)
            )
        )
        shelf = Shelf(folder, bundle.manifest.bundle, settings.shelf_bytes)
        encoder = RequestEncoder(bundle, settings.max_candidates)
        items = ItemFollower(
            bundle,
            encoder,
            engine,
            ItemShelf(folder, bundle.manifest.bundle),
            metrics,
            connect=lambda: open_store(settings.store, bundle.manifest.bundle),
            tolerance=settings.golden_tolerance,
            most_bytes=settings.items_bytes,
        )
        await items.start()
        packs = PackCache(
            store,
            Loader(store, engine, bundle, shelf, settings.golden_tolerance),
            shelf,
            metrics,
            most_bytes=settings.resident_bytes,
            pinned=settings.pinned,
            declared=bundle.manifest.domains,
            items=items.want,
        )
        router = Router(packs, bundle.manifest.domains, settings.unknown_domain, settings.cold_domain)
        scorer = Scorer(encoder, engine)
        profiles = None
        if users is not None:
            profiles = Profiles(
                users,
                encoder.readable,
                metrics,
                keep=settings.users_cache_seconds,
                timeout=settings.users_timeout_ms / 1e3,
            )
        followers = [
            asyncio.create_task(packs.follow(), name="follow the store"),
            asyncio.create_task(items.follow(), name="follow item tables"),
        ]
        service = Runtime(
            settings,
            bundle,
            metrics,
            store,
            engine,
            packs,
            items,
            router,
            scorer,
            users,
            profiles,
            followers,
        )
        tasks = [
            *followers,
            asyncio.create_task(_freeze_once_settled(packs), name="freeze what was loaded"),
            asyncio.create_task(_measure(service), name="measure"),
        ]
        # Without URLs, which may hold a password.
        resolved = settings.model_dump(mode="json", exclude={"store", "users"})
        log.info("starts", bundle=bundle.manifest.bundle, settings=resolved)
        try:
            yield service
        finally:
            items.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if packs.changed.is_set():
                packs.remember()
            packs.close()
            if users is not None and profiles is not None:
                await profiles.close()
                await users.close()
            await store.close()
            engine.close()
            gc.unfreeze()


def _allow_open_files() -> None:
    """As many as the system lets us: each mapped pack takes one, and often 1024 are allowed at first."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _measure(service: Runtime) -> None:
    """Keep gauges true, and what serves noted on the shelf."""
    packs, metrics = service.packs, service.metrics
    while True:
        metrics.ready.set(float(service.ready))
        metrics.resident_packs.set(len(packs.resident))
        metrics.resident_bytes.set(packs.resident.nbytes)
        metrics.from_shelf.set(float(packs.from_shelf))
        if packs.changed.is_set():
            packs.changed.clear()
            await asyncio.to_thread(packs.remember)
        await asyncio.sleep(_LOOK)


async def _freeze_once_settled(packs: PackCache) -> None:
    """Keep the collector from walking over what stays loaded; its pauses are most of the latency's tail."""
    await packs.settled.wait()
    gc.collect()
    gc.freeze()

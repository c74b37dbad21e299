"""`Runtime`: the objects of one running service, put together once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from service.contract import plugins
from service.contract.bundle import Bundle
from service.contract.pack import GENERAL
from service.engines._protocol import Engine
from service.features import RequestEncoder
from service.packs import PackCache
from service.routing import Router
from service.scoring import Ranking, Scorer
from service.settings import Settings
from service.stores._open import open_store
from service.telemetry import Metrics

log = structlog.get_logger()


@dataclass(frozen=True)
class Runtime:
    """A service that follows its store."""

    settings: Settings
    bundle: Bundle
    metrics: Metrics
    packs: PackCache
    router: Router
    scorer: Scorer
    follower: asyncio.Task[None]

    @property
    def alive(self) -> bool:
        """Whether promotions are still followed; nothing but a fault of ours ends that."""
        return not self.follower.done()

    @property
    def domains(self) -> list[str]:
        """Every domain that the bundle declares or the store names, sorted; the general one is among them."""
        return sorted({GENERAL, *self.bundle.manifest.domains, *self.packs.live})

    def count(self, domain: str, status: int, seconds: float) -> None:
        """Count an answered rank request."""
        known = domain in self.packs.resident or domain in self.bundle.manifest.domains
        label = domain if known else "other"
        self.metrics.requests.labels(label, status).inc()
        self.metrics.request_seconds.labels(label).observe(seconds)

    def observe(self, ranking: Ranking, candidates: int) -> None:
        """Take the measures of one ranking."""
        self.metrics.candidates.observe(candidates)
        self.metrics.features_seconds.observe(ranking.features_seconds)
        self.metrics.engine_seconds.observe(ranking.engine_seconds)
        for field, unknown in ranking.unknown.items():
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
    metrics = Metrics()
    bundle = Bundle.open(settings.bundle)
    engine = open_engine(settings, bundle)
    store = open_store(settings.store, bundle.manifest.bundle)
    packs = PackCache(store, engine, bundle.manifest, settings.golden_tolerance, metrics)
    router = Router(packs.resident, bundle.manifest.domains, settings.unknown_domain)
    scorer = Scorer(router, RequestEncoder(bundle, settings.max_candidates), engine)
    metrics.ready.set_function(lambda: float(not router.missing()))
    follower = asyncio.create_task(packs.follow(), name="follow the store")
    freezer = asyncio.create_task(_freeze_once_settled(packs), name="freeze what was loaded")
    # Without the store's URL, which may hold a password.
    resolved = settings.model_dump(mode="json", exclude={"store"})
    log.info("starts", bundle=bundle.manifest.bundle, settings=resolved)
    try:
        yield Runtime(settings, bundle, metrics, packs, router, scorer, follower)
    finally:
        for task in (follower, freezer):
            task.cancel()
        await asyncio.gather(follower, freezer, return_exceptions=True)
        packs.close()
        await store.close()
        engine.close()
        gc.unfreeze()


async def _freeze_once_settled(packs: PackCache) -> None:
    """Keep the collector from walking over what stays loaded; its pauses are most of the latency's tail."""
    await packs.settled.wait()
    gc.collect()
    gc.freeze()

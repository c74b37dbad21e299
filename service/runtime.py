"""`Runtime`: the objects of one running service, put together once."""

from __future__ import annotations

import asyncio
import gc
import resource
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from service.contract import plugins
from service.contract.bundle import Bundle
from service.contract.errors import SettingsError
from service.contract.pack import GENERAL
from service.engines._protocol import Engine
from service.experiments.arms import Model
from service.experiments.serving import Serving, open_serving
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

if TYPE_CHECKING:
    from service.exposures import ExposureLog

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
    exposures: ExposureLog | None
    """None where none are logged."""
    experiments: Serving | None
    """None where no document of experiments is followed."""
    others: Sequence[Runtime]
    """Of the bundles that arms may name; they share the metrics of this one."""

    @property
    def alive(self) -> bool:
        """Whether promotions are still followed; nothing but a fault of ours ends that."""
        here = not any(follower.done() for follower in self.followers)
        return here and all(other.alive for other in self.others)

    @property
    def ready(self) -> bool:
        """Whether what is declared answers, under the item table that was live at the start."""
        here = not self.router.missing() and not self.items.coming
        return here and all(other.ready for other in self.others)

    @property
    def domains(self) -> list[str]:
        """Every domain that the bundle declares or the store names, sorted; the general one is among them."""
        return sorted({GENERAL, *self.bundle.manifest.domains, *self.packs.live})

    def observe(self, domain: str, ranking: Ranking, candidates: int, waited: float) -> None:
        """Take the measures of one ranking.

        Args:
            domain: that was asked for.
            ranking: what is answered.
            candidates: that were asked for.
            waited: seconds before it was begun.
        """
        self.metrics.candidates.observe(candidates)
        self.metrics.features_seconds.observe(ranking.features_seconds)
        self.metrics.engine_seconds.observe(ranking.engine_seconds)
        self.metrics.drift.looked_up(ranking.values, ranking.unknown)
        if self.metrics.sample():
            self.metrics.queue_seconds.observe(waited)
            self.metrics.drift.scored(domain, ranking.probabilities)


def open_engine(settings: Settings, bundle: Bundle) -> Engine:
    """The engine that the settings name, on a bundle's graph.

    Raises:
        UnknownOption: there is none of this name.
        BundleError: it cannot read the graph.
        SettingsError: it has no such options.
    """
    module = plugins.load("service.engines", settings.engine)
    if not settings.engine_options:
        engine: Engine = module.open(bundle, settings.threads)
        return engine
    if not hasattr(module, "Options"):
        raise SettingsError(f"the engine {settings.engine} has no options")
    try:
        options = module.Options.model_validate(settings.engine_options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(f"engine {settings.engine}: {place}: {first['msg']}") from None
    chosen: Engine = module.open(bundle, settings.threads, options)
    return chosen


def require_exposures(settings: Settings) -> None:
    """Find out whether the log of exposures that the settings ask for can be written.

    Raises:
        SettingsError: it cannot.
        UnknownOption: `exposures_stream` names no Redis.
    """
    if settings.exposures is None:
        if settings.exposures_stream:
            raise SettingsError("MDCTR_EXPOSURES_STREAM is beside MDCTR_EXPOSURES, which is not set")
        return
    if find_spec("pyarrow") is None:
        raise SettingsError("MDCTR_EXPOSURES needs pyarrow: pip install 'mdctr[exposures]'")
    if settings.exposures_stream:
        from service.stores._redis_url import parse  # noqa: PLC0415 - a service without it has no redis

        parse(settings.exposures_stream)
    try:
        settings.exposures.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.exposures):
            pass
    except OSError as error:
        raise SettingsError(f"MDCTR_EXPOSURES: {settings.exposures}: {error.strerror}") from None


@asynccontextmanager
async def run(settings: Settings, shared: Metrics | None = None) -> AsyncGenerator[Runtime, None]:
    """Put a service together, and follow the store until the block ends.

    A store that does not answer is no reason not to start: the service is then alive and not ready.

    Args:
        settings: what an operator decided.
        shared: the metrics of the service that this one is a part of.

    Raises:
        BundleError: a bundle cannot be served.
        SettingsError: a bundle takes other requests than the first.
        UnknownOption: there is no such engine or store.
    """
    _allow_open_files()
    metrics = shared or Metrics()
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
        loader = Loader(store, engine, bundle, shelf, settings.golden_tolerance)
        packs = PackCache(
            store,
            loader,
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
        others = [
            await stack.enter_async_context(_other(path, settings, folder, bundle, metrics))
            for path in settings.bundles
        ]
        models = [Model(each.bundle.manifest.bundle, each.packs, each.router, each.scorer) for each in others]
        own = Model(bundle.manifest.bundle, packs, router, scorer)
        experiments = open_serving(settings, loader, own, models, metrics)
        followers = [
            asyncio.create_task(packs.follow(), name="follow the store"),
            asyncio.create_task(items.follow(), name="follow item tables"),
        ]
        if experiments is not None:
            followers.append(asyncio.create_task(experiments.follow(), name="follow experiments"))
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
            await stack.enter_async_context(_exposures(settings, metrics)),
            experiments,
            others,
        )
        tasks = [
            *followers,
            asyncio.create_task(_freeze_once_settled(packs), name="freeze what was loaded"),
            asyncio.create_task(_measure(service, shown=shared is None), name="measure"),
        ]
        # Without URLs, which may hold a password.
        resolved = settings.model_dump(
            mode="json", exclude={"store", "users", "exposures_stream", "experiments"}
        )
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
            if experiments is not None:
                await experiments.close()
            if users is not None and profiles is not None:
                await profiles.close()
                await users.close()
            await store.close()
            engine.close()
            gc.unfreeze()


@asynccontextmanager
async def _other(
    path: Path, settings: Settings, folder: Path, first: Bundle, metrics: Metrics
) -> AsyncGenerator[Runtime, None]:
    """The service of another bundle, which takes the same requests."""
    changes = {"bundle": path, "bundles": (), "shelf": folder, "users": ""}
    alone = {"experiments": "", "exposures": None, "exposures_stream": ""}
    async with run(settings.model_copy(update={**changes, **alone}), metrics) as other:
        asked, given = (
            {(field.key, field.numeric, field.multiple is not None) for field in each.schema.fields}
            for each in (first, other.bundle)
        )
        if asked != given or first.items.dtype != other.bundle.items.dtype:
            differ = ", ".join(sorted({key for key, *_ in asked ^ given})) or "the item id's type"
            raise SettingsError(f"the bundle in {path} takes other requests than the first: {differ}")
        if other.bundle.manifest.bundle == first.manifest.bundle:
            raise SettingsError(f"the bundle in {path} is {first.manifest.bundle} again")
        yield other


@asynccontextmanager
async def _exposures(settings: Settings, metrics: Metrics) -> AsyncGenerator[ExposureLog | None, None]:
    """The log that the settings ask for, until the block ends."""
    require_exposures(settings)
    if settings.exposures is None:
        yield None
        return
    from service.exposures import ExposureLog  # noqa: PLC0415 - a service without a log has no pyarrow

    also = None
    if settings.exposures_stream:
        from service.exposure_stream import ExposureStream  # noqa: PLC0415 - nor does it need redis

        also = ExposureStream(settings.exposures_stream, settings.exposures_stream_entries, metrics)
    written = ExposureLog(
        settings.exposures,
        metrics,
        part_seconds=settings.exposures_part_seconds,
        part_bytes=settings.exposures_part_bytes,
        most=settings.exposures_queue,
        also=also,
    )
    try:
        yield written
    finally:
        # In a thread: what waits is written, and sent over this loop.
        await asyncio.to_thread(written.close)
        if also is not None:
            await also.close()


def _allow_open_files() -> None:
    """As many as the system lets us: each mapped pack takes one, and often 1024 are allowed at first."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _measure(service: Runtime, *, shown: bool) -> None:
    """Keep gauges true, unless they are another service's, and what serves noted on the shelf."""
    packs, metrics = service.packs, service.metrics
    while True:
        if shown:
            metrics.ready.set(float(service.ready))
            metrics.resident_packs.set(len(packs.resident))
            metrics.resident_bytes.set(packs.resident.nbytes)
            metrics.resident_bytes_limit.set(service.settings.resident_bytes)
            metrics.from_shelf.set(float(packs.from_shelf))
            metrics.drift.count()
        if packs.changed.is_set():
            packs.changed.clear()
            await asyncio.to_thread(metrics.serve, service.bundle.manifest.bundle, dict(packs.good))
            await asyncio.to_thread(packs.remember)
        await asyncio.sleep(_LOOK)


async def _freeze_once_settled(packs: PackCache) -> None:
    """Keep the collector from walking over what stays loaded; its pauses are most of the latency's tail."""
    await packs.settled.wait()
    gc.collect()
    gc.freeze()

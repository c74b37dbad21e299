"""A `PackCache` and all that it stands on, in the test's own event loop."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.bundle import Bundle
from service.contract.pack import DomainPack, Golden, version
from service.engines import ort
from service.engines.ort import OrtEngine
from service.loading import Loader
from service.packs import PackCache
from service.routing import Router
from service.shelf import Shelf
from service.stores._protocol import PackStore
from service.telemetry import Metrics
from tests.service import bundles

EACH = 4 * sum(int(np.prod(shape)) for shape in bundles.OWNED.values())
"""Bytes of a pack's tensors: all are float32."""
ROOM = 1_000_000
"""Bytes for all the packs that a test may have."""

FIRST = (bundles.make_pack("_general"), bundles.make_pack("books"), bundles.make_pack("films"))
"""What the bundle was made with."""


def version_of(pack: DomainPack) -> str:
    """The version under which a pack is put."""
    return version(pack.to_bytes())


def bad(domain: str, seed: int = 9) -> DomainPack:
    """A pack whose golden logits are off by one."""
    pack = bundles.make_pack(domain, seed)
    return DomainPack(
        pack.bundle, domain, pack.tensors, Golden(pack.golden.inputs, pack.golden.logit + np.float32(1))
    )


async def soon(happened: Callable[[], object], within: float = 10.0) -> None:
    """Return as soon as `happened()` is true; fail if it never is."""
    async with asyncio.timeout(within):
        while not happened():
            await asyncio.sleep(0.002)


@dataclass
class Cache:
    """A cache that follows a store."""

    packs: PackCache
    shelf: Shelf
    engine: OrtEngine
    metrics: Metrics
    router: Router
    follower: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.follower = asyncio.create_task(self.packs.follow())

    @property
    def handles(self) -> int:
        """Packs that the engine holds."""
        return len(self.engine._handles)

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value; 0 if it is not there yet."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def serving(self) -> dict[str, str]:
        """By domain, what is resident."""
        return {domain: resident.version for domain, resident in self.packs.resident.items()}

    async def settled(self) -> None:
        """Wait for the start to be over."""
        async with asyncio.timeout(10):
            await self.packs.settled.wait()

    async def idle(self) -> None:
        """Wait until no request brings a pack any more."""
        await soon(lambda: not self.packs._bringing)

    async def asks(self, domain: str, seconds: float = 10.0) -> str:
        """The version that answers a request, after its scores were compared with numpy's."""
        inputs = bundles.random_inputs(3, seed=len(domain))
        with await self.router.route(domain, seconds) as resident:
            held = {name.removeprefix("pack."): t for name, t in resident.handle.tensors.items()}  # type: ignore[attr-defined]
            logit = self.engine.score(inputs, resident.handle)
            np.testing.assert_allclose(logit, bundles.logits(held, inputs), atol=1e-5)
            return resident.version


@asynccontextmanager
async def caching(
    store: PackStore,
    bundle: Bundle,
    *,
    shelf: Path | None = None,
    most_bytes: int = ROOM,
    unknown: str = "refuse",
    cold: Any = "wait",
    **options: Any,
) -> AsyncGenerator[Cache, None]:
    """Follow a store until the block ends; fails if the follower ended before, or a handle is left."""
    with tempfile.TemporaryDirectory() as folder:
        engine = ort.open(bundle, 1)
        kept = Shelf(shelf or Path(folder), bundles.BUNDLE, 10**9)
        metrics = Metrics()
        packs = PackCache(
            store,
            Loader(store, engine, bundle, kept, 1e-4),
            kept,
            metrics,
            most_bytes=most_bytes,
            **{"declared": bundle.manifest.domains, **options},
        )
        router = Router(packs, bundle.manifest.domains, unknown, cold)
        cache = Cache(packs, kept, engine, metrics, router)
        try:
            yield cache
            assert not cache.follower.done(), cache.follower
            await cache.idle()
            await soon(lambda: cache.handles == len(packs.resident))
        finally:
            cache.follower.cancel()
            await asyncio.gather(cache.follower, return_exceptions=True)
            packs.close()
            engine.close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, run in a loop of its own."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run

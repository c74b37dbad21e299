"""The service on a GPU over HTTP: requests a second and their latencies, scored together and one by one.

Everything is one process for each worker, as it is run; the store of packs is a folder. The closed loop keeps
so many connections busy; the open one sends at a share of what the closed one reached, whether answers come
or not.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.closed import Closed
from loadtest.cores import Cores, on
from loadtest.fleet import BenchError
from loadtest.gpu_stage import Ground
from loadtest.load import Load
from loadtest.server import ServerError, free_port, service
from loadtest.traffic import Mix, Traffic
from service.contract.pack import GENERAL, DomainPack, Golden
from service.engines import ort
from service.stores._open import open_store

_SHARE = 0.6
"""Of the closed loop's rate, at which the open one sends."""
_DISTINCT = 128
_START = 45.0
"""Seconds that a service may take to be ready: it captures its graphs first."""
_DOMAINS = 100
"""At most; more of them are the engine's matter (`gpu_throughput`)."""
_ENGINES: Mapping[str, Mapping[str, Any]] = {
    "mixed": {"dtype": "float16"},
    "single": {"dtype": "float16", "mixed": False, "pieces": [1, 2, 4, 8, 16]},
    "cpu": {},
    "mixed_float32": {"dtype": "float32"},
}
"""`cpu` is the engine `ort`, on one core."""
_MANY = 4
"""Workers of the service that has several."""


def measure(ground: Ground) -> dict[str, Any]:
    """By engine and workers, then `<candidates>.<domains>`: `rps`, `p50_ms`, `p99_ms`, and at `open_rate`.

    `mixed_gain` is the requests a second of `mixed` to those of `single`, `left_out` what there was no time
    for, and `error` what failed. `mixed` with one worker is asked for one domain, too.
    """
    size = ground.size
    domains = [each for each in size.domains if each <= _DOMAINS]
    found: dict[str, Any] = {}
    failed: list[str] = []
    cores = _apart()
    with tempfile.TemporaryDirectory(prefix="mdctr-gpu-http-") as place:
        store = f"directory:{place}/store"
        names = asyncio.run(_publish(ground, store, max(domains)))
        asked = {
            f"{candidates}.{count}": _requests(ground, candidates, names[:count])
            for candidates in size.candidates
            for count in domains
        }
        services = [(name, 1) for name in _ENGINES]
        if len(cores.server) > _MANY:
            services.append(("mixed", _MANY))
        for at, (name, workers) in enumerate(services):
            if at and ground.late:
                found["left_out"] = [f"{each}_{count}" for each, count in services[at:]]
                break
            try:
                with _served(ground, store, name, workers, cores) as port:
                    found[f"{name}_{workers}"] = {
                        what: _load(port, requests, cores, Path(place) / f"{name}-{workers}-{what}", ground)
                        for what, requests in asked.items()
                        if not at or what.endswith(f".{max(domains)}")
                    }
            except (ServerError, BenchError, OSError) as error:  # the others may do
                failed.append(f"{name}_{workers}: {error}")
    for what, figures in found.get("mixed_1", {}).items():
        if what in found.get("single_1", {}):
            figures["mixed_gain"] = figures["rps"] / found["single_1"][what]["rps"]
    return {**found, "error": "\n".join(failed)} if failed else found


@contextmanager
def _served(ground: Ground, store: str, name: str, workers: int, cores: Cores) -> Iterator[int]:
    """A service with this engine, for the time of the block, which has the client's cores; gives its port."""
    settings = {
        "MDCTR_WORKERS": str(workers),
        "MDCTR_ENGINE": "ort" if name == "cpu" else "ort_cuda",
        "MDCTR_GOLDEN_TOLERANCE": "0.02",
        "MDCTR_DEADLINE_MS": "2000",
        "MDCTR_DRAIN_SECONDS": "0",
        "MDCTR_LOG_FORMAT": "json",
        "MDCTR_PORT": str(port := free_port()),
        "PYTHONFAULTHANDLER": "1",
    }
    if name != "cpu":
        settings["MDCTR_ENGINE_OPTIONS"] = json.dumps({"device": ground.size.device, **_ENGINES[name]})
    log = ground.folder / f"http-{name}-{workers}.log"
    with (
        on(cores.server),
        service(ground.bundle.path, store, log, settings, timeout=_START),
        on(cores.client),
    ):
        yield port


def _load(
    port: int, requests: Sequence[bytes], cores: Cores, place: Path, ground: Ground
) -> dict[str, float]:
    seconds = 0.6 * ground.size.seconds
    with closing(Closed(port, ground.size.connections)) as client:
        client.run(requests, seconds / 2)
        rates, took = zip(*(client.run(requests, seconds / 2) for _ in range(3)), strict=True)
    figures = {"rps": float(np.median(rates))}
    for name, share in (("p50_ms", 50), ("p99_ms", 99)):
        figures[name] = 1e3 * float(np.median([np.percentile(each, share) for each in took]))
    rate = _SHARE * figures["rps"]
    loose = Load(port, requests, cores, place, connections=ground.size.connections).at(rate, 1.0 + seconds)
    return {
        **figures,
        "open_rate": rate,
        "open_p50_ms": loose.p50_ms,
        "open_p99_ms": loose.p99_ms,
        "open_answered": loose.answered,
        "open_lag_p99_ms": loose.lag_p99_ms,
    }


def _requests(ground: Ground, candidates: int, domains: Sequence[str]) -> list[bytes]:
    mix = Mix(candidates={candidates: 1.0}, items_zipf=0.0, users_zipf=0.0, domains_zipf=0.0)
    traffic = Traffic(ground.bundle.schema, ground.bundle.items.keys, domains, mix, candidates)
    return [traffic.ask().http for _ in range(_DISTINCT)]


async def _publish(ground: Ground, url: str, count: int) -> list[str]:
    """Put so many domains' packs into a store; their names."""
    bundle, packs = ground.bundle, ground.packs(count)
    blobs: dict[str, bytes] = {GENERAL: dict(bundle.packs())[GENERAL]}
    with closing(ort.open(bundle, 1)) as engine:
        for pack in packs:
            logit = engine.score(pack.golden.inputs, engine.load(pack))
            golden = Golden(pack.golden.inputs, np.array(logit))
            blobs[pack.domain] = DomainPack(
                pack.bundle, pack.domain, pack.tensors, golden, pack.calibration
            ).to_bytes(bundle.base)
    for domain in bundle.manifest.domains:
        blobs.setdefault(domain, dict(bundle.packs())[domain])
    store = open_store(url, bundle.manifest.bundle)
    try:
        await store.promote({domain: await store.put(domain, blob) for domain, blob in blobs.items()})
    finally:
        await store.close()
    return [pack.domain for pack in packs]


def _apart() -> Cores:
    """Half of the cores for the service, and the others for its client."""
    there = sorted(os.sched_getaffinity(0))
    half = max(1, len(there) // 2)
    return Cores(frozenset(there[:half]), frozenset(there[half:] or there))

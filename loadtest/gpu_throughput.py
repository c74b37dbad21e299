"""Candidates a second when there is always more to do: requests together, and one after another.

`bulk` hands the engine's thread lists of requests, so nothing but the engine is measured. `asked` puts them
in line from an event loop that always has so many under way, as the service does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from loadtest.gpu_stage import DTYPES, Ground, interleaved
from service.engines._protocol import Arrays, Handle
from service.engines.ort_cuda import OrtCudaEngine

UNDER_WAY = 512
"""Requests at once."""
_DISTINCT = 256
_ROUNDS = 5
"""At most: each answers all that is under way at least once, one by one, too."""
_FEW = 32
"""Requests that are answered one after another before the clock is looked at."""
Asked = Sequence[tuple[Arrays, Handle]]


def measure(ground: Ground) -> dict[str, Any]:
    """By type, then `<candidates>.<domains>`: candidates a second, and what going together gains.

    `mixed_bulk` and `mixed_asked` are of requests together, `single_bulk` and `single_asked` one by one.
    """
    size, found = ground.size, dict[str, Any]()
    left = len(DTYPES) * len(size.candidates) * len(size.domains)
    packs = ground.packs(max(size.domains))
    for dtype in DTYPES:
        with ExitStack() as stack:
            engines = {
                "mixed": stack.enter_context(ground.engine(dtype=dtype)),
                "single": stack.enter_context(ground.engine(dtype=dtype, mixed=False, pieces=(1, 2, 4, 8))),
            }
            handles = {name: [engine.load(pack) for pack in packs] for name, engine in engines.items()}
            found[dtype] = {}
            for candidates in size.candidates:
                requests = [ground.request(candidates, seed) for seed in range(_DISTINCT)]
                for domains in size.domains:
                    turns = range(max(UNDER_WAY, domains))
                    asked = {
                        name: [(requests[at % _DISTINCT], own[at % domains]) for at in turns]
                        for name, own in handles.items()
                    }
                    rounds = min(_ROUNDS, size.rounds)
                    rates = _rates(engines, asked, size.seconds / 2 / rounds, rounds, ground.share(left))
                    left -= 1
                    found[dtype][f"{candidates}.{domains}"] = {
                        **{name: rate * candidates for name, rate in rates.items()},
                        "bulk_gain": rates["mixed_bulk"] / rates["single_bulk"],
                        "asked_gain": rates["mixed_asked"] / rates["single_asked"],
                    }
    return found


def _rates(
    engines: Mapping[str, OrtCudaEngine],
    asked: Mapping[str, Asked],
    seconds: float,
    rounds: int,
    until: float,
) -> dict[str, float]:
    """Requests a second of each."""
    for name, engine in engines.items():
        engine.line.do(partial(engine.answer, engine.jobs(asked[name])))  # every pack is in its slot now
    contenders = {
        f"{name}_bulk": partial(_bulk, engine, asked[name], seconds, together=name == "mixed")
        for name, engine in engines.items()
    }
    contenders |= {
        f"{name}_asked": partial(_through_line, engine, asked[name], seconds)
        for name, engine in engines.items()
    }
    found = interleaved(contenders, rounds, until)
    return {name: float(np.median(each)) for name, each in found.items()}


def _bulk(engine: OrtCudaEngine, asked: Asked, seconds: float, *, together: bool) -> float:
    jobs = engine.jobs(asked)

    def run() -> float:
        done, began, now = 0, time.perf_counter(), 0.0
        while not done or now - began < seconds:
            if together:
                engine.answer(jobs)
                done += len(jobs)
            else:
                for job in jobs[:_FEW]:
                    engine.answer([job])
                done += _FEW
            now = time.perf_counter()
        return done / (now - began)

    return engine.line.do(run)


def _through_line(engine: OrtCudaEngine, asked: Asked, seconds: float) -> float:
    return asyncio.run(_asking(engine, asked, seconds))


async def _asking(engine: OrtCudaEngine, asked: Asked, seconds: float) -> float:
    began, done = time.perf_counter(), 0

    async def one(at: int) -> None:
        nonlocal done
        while True:
            await engine.submit(*asked[at % len(asked)])
            done, at = done + 1, at + UNDER_WAY
            if time.perf_counter() - began >= seconds:
                return

    await asyncio.gather(*(one(at) for at in range(UNDER_WAY)))
    return done / (time.perf_counter() - began)

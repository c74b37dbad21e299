"""Candidates a second when there is always more to do: requests together, and one after another.

`bulk` hands the engine's thread lists of requests, so nothing but the engine is measured. `asked` puts them
in line from an event loop that always has so many under way, as the service does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from loadtest.gpu_stage import DTYPES, Ground, interleaved, ratio
from service.engines._protocol import Arrays, Handle
from service.engines.ort_cuda import OrtCudaEngine

UNDER_WAY = 512
"""Requests at once."""
_DISTINCT = 256
_ROUNDS = 11
"""At most: each answers all that is under way at least once, one by one, too."""
_FEWER = 5
"""Parts of a contender's seconds, of which a round takes one."""
WAYS = "bulk", "asked"
RATES = "mixed_bulk", "single_bulk", "mixed_asked", "single_asked"
_FEW = 32
"""Requests that are answered one after another before the clock is looked at."""
Asked = Sequence[tuple[Arrays, Handle]]


def measure(ground: Ground) -> dict[str, Any]:
    """By type, then `<candidates>.<domains>`: candidates a second, and what going together gains.

    `mixed_bulk` and `mixed_asked` are of requests together, `single_bulk` and `single_asked` one by one.
    `bulk_kept` and `asked_kept` are the rate together as a share of that with the fewest domains. All numbers
    of domains are measured in turns; gains and shares are medians of the rounds' ratios.
    """
    size, found = ground.size, dict[str, Any]()
    left = len(DTYPES) * len(size.candidates)
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
                contenders = dict[str, Callable[[], float]]()
                seconds = size.seconds / 2 / _FEWER
                for domains in size.domains:
                    turns = range(max(UNDER_WAY, domains))
                    for name, own in handles.items():
                        asked = [(requests[at % _DISTINCT], own[at % domains]) for at in turns]
                        for way, call in _ways(engines[name], asked, seconds, together=name == "mixed"):
                            contenders[f"{name}_{way}.{domains}"] = call
                rates = interleaved(contenders, min(_ROUNDS, size.rounds), ground.share(left))
                left -= 1
                for domains in size.domains:
                    of = {name: rates[f"{name}.{domains}"] for name in RATES}
                    found[dtype][f"{candidates}.{domains}"] = {
                        **{name: float(np.median(rate)) * candidates for name, rate in of.items()},
                        **{f"{way}_gain": ratio(of[f"mixed_{way}"], of[f"single_{way}"]) for way in WAYS},
                        **{
                            f"{way}_kept": ratio(of[f"mixed_{way}"], rates[f"mixed_{way}.{size.domains[0]}"])
                            for way in WAYS
                        },
                    }
    return found


def _ways(
    engine: OrtCudaEngine, asked: Asked, seconds: float, *, together: bool
) -> list[tuple[str, Callable[[], float]]]:
    engine.line.do(partial(engine.answer, engine.jobs(asked)))  # every pack is in its slot now
    return [
        ("bulk", partial(_bulk, engine, asked, seconds, together=together)),
        ("asked", partial(_through_line, engine, asked, seconds)),
    ]


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

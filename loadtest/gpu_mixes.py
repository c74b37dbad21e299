"""Random mixes of requests beside the same requests one by one, while packs are swapped.

There are fewer slots than packs, so packs come and go on the device all the time; some are released while
requests under them are under way, and loaded again as new versions.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.gpu_stage import DTYPES, Ground
from service.engines._protocol import Handle
from service.engines.ort_cuda import OrtCudaEngine
from service.resident import sigmoid

PACKS, REQUESTS, SLOTS, MOST = 48, 40, 40, 32
_SWAPS = 0.2
"""Of the mixes, those in which a pack is swapped while requests are under way."""
_TOGETHER = 8
"""Mixes under way at once."""


def measure(ground: Ground) -> dict[str, Any]:
    """By type: the greatest difference in probability over all mixes, and what was mixed.

    `to_float32` is how far the type's single answers are from float32's.
    """
    found: dict[str, Any] = {}
    exact: npt.NDArray[np.float64] | None = None
    for at, dtype in enumerate(DTYPES):
        began, until = time.perf_counter(), ground.share(len(DTYPES) - at)
        with ground.engine(dtype=dtype, slots=SLOTS, pieces=(1, 4, 16, 64, 256)) as engine:
            mixing = _Mixing(ground, engine)
            found[dtype] = asyncio.run(mixing(ground.size.mixes, until))
        single = np.concatenate([np.concatenate(each) for each in mixing.expected])
        exact = single if exact is None else exact
        found[dtype] |= {
            "to_float32": float(np.abs(single - exact).max()),
            "seconds": time.perf_counter() - began,
        }
    return found


class _Mixing:
    def __init__(self, ground: Ground, engine: OrtCudaEngine) -> None:
        self.engine, self.packs = engine, ground.packs(PACKS)
        draw = np.random.default_rng(1)
        counts = [1, 128, 129, *draw.integers(1, 400, REQUESTS - 3).tolist()]
        self.requests = [ground.request(count, at, rows=at % 4 != 3) for at, count in enumerate(counts)]
        self.handles: list[Handle] = [engine.load(pack) for pack in self.packs]
        self.expected = [
            [sigmoid(engine.score(request, handle)) for request in self.requests] for handle in self.handles
        ]
        self.worst, self.swaps, self.asked = 0.0, 0, 0

    async def __call__(self, mixes: int, until: float) -> dict[str, Any]:
        """So many mixes, or as many as there is time for."""
        launches, jobs = self.engine.line.launches, self.engine.line.jobs
        left, done = iter(range(mixes)), 0

        async def some() -> None:
            nonlocal done
            for seed in left:
                if done and time.perf_counter() >= until:
                    return
                done += 1
                await self._mix(np.random.default_rng([2, seed]))

        await asyncio.gather(*(some() for _ in range(_TOGETHER)))
        launches, jobs = self.engine.line.launches - launches, self.engine.line.jobs - jobs
        return {
            "mixes": done,
            "requests": self.asked,
            "swaps": self.swaps,
            "launches": launches,
            "requests_a_launch": jobs / max(1, launches),
            "max_probability_difference": self.worst,
        }

    async def _mix(self, draw: np.random.Generator) -> None:
        chosen = [
            (int(draw.integers(PACKS)), int(draw.integers(REQUESTS)))
            for _ in range(draw.integers(1, MOST + 1))
        ]
        answers = [self.engine.submit(self.requests[at], self.handles[pack]) for pack, at in chosen]
        if draw.random() < _SWAPS:
            pack = chosen[0][0]
            gone = self.handles[pack]
            self.handles[pack] = self.engine.load(self.packs[pack])
            self.engine.release(gone)  # while what was just asked is under way
            self.swaps += 1
        logits = await asyncio.gather(*answers)
        expected = [self.expected[pack][at] for pack, at in chosen]
        if [each.shape for each in logits] != [each.shape for each in expected]:
            raise ValueError("answers of other lengths than alone")
        off = np.abs(sigmoid(np.concatenate(logits)) - np.concatenate(expected))
        self.worst = float(np.maximum(self.worst, off.max()))  # which a nan stays
        self.asked += len(chosen)

"""Times of several things, taken in turns: so that a device that slows down, slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Run = Callable[[], object]

MATMUL = "matmul"
_SQUARE, _SMALL = 8192, 512
WARM = 3
"""Runs before the timed ones."""


class Product:
    """A product of two square matrices, to hold other rates against."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        side = _SQUARE if device.type == "cuda" else _SMALL
        self._factors = [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
        self.side = side
        self.flops = 2 * side**3
        """Floating-point operations of one product."""

    def __call__(self) -> None:
        """Multiply."""
        torch.mm(*self._factors)


def seconds(runs: Mapping[str, Run], device: torch.device, count: int) -> dict[str, list[float]]:
    """Seconds of each run, `count` of them, one of each in turns; the device waits after each."""
    for run in runs.values():
        for _ in range(WARM):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            synchronise(device)
            began = time.perf_counter()
            run()
            synchronise(device)
            taken[name].append(time.perf_counter() - began)
    return taken


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Milliseconds: `ms`, the median, and `p10_ms` and `p90_ms`."""
    p10, median, p90 = (float(each) * 1e3 for each in np.quantile(taken, (0.1, 0.5, 0.9)))
    return {"ms": median, "p10_ms": p10, "p90_ms": p90}


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

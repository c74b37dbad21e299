"""Which processor cores the server has and which the client, and what else a timing depends on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cores:
    """A division of this machine."""

    server: frozenset[int]
    client: frozenset[int]

    @property
    def apart(self) -> bool:
        """Whether neither takes time from the other."""
        return not self.server & self.client


def divide(workers: int) -> Cores:
    """A core for each worker, and the others for the client; it shares where there are not enough."""
    there = sorted(os.sched_getaffinity(0))
    server = there[:workers]
    return Cores(frozenset(server), frozenset(there[workers:] or there))


@contextmanager
def on(cores: frozenset[int]) -> Iterator[None]:
    """Run the block, and the processes that it starts for as long as they live, on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def busy(seconds: float = 1.0) -> float:
    """How many cores other processes keep busy, before anything is measured."""
    before = _used()
    time.sleep(seconds)
    return max(0.0, (_used() - before) / seconds / os.sysconf("SC_CLK_TCK"))


def conditions() -> dict[str, Any]:
    """The machine and the libraries, for a report."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "busy_cores_before": round(busy(), 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("onnxruntime", "fastapi", "uvicorn", "numpy")},
    }


def _used() -> float:
    """Ticks that all cores spent at work since the machine's start."""
    user, nice, system, _idle, _waiting, *rest = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return user + nice + system + sum(rest[:2])

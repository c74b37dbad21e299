"""Bytes of the device for a domain, and how many domains are on it at once."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from loadtest.gpu_stage import DTYPES, Ground

_TOGETHER = 256
_DISTINCT = 64
"""Packs drawn at random; more domains have one of them again, each in a slot of its own."""


def measure(ground: Ground) -> dict[str, Any]:
    """By type: bytes of a slot, how many domains have one, and seconds to bring them and ask each once."""
    count = ground.size.resident
    found: dict[str, Any] = {}
    packs = ground.packs(min(count, _DISTINCT))
    request = ground.request(100, 0)
    for dtype in DTYPES:
        with ground.engine(
            dtype=dtype, slots=count, slot_bytes=64_000_000_000, pieces=(1, 64, 256)
        ) as engine:
            handles = [engine.load(packs[at % len(packs)]) for at in range(count)]
            began = time.perf_counter()
            for start in range(0, count, _TOGETHER):
                if start and ground.late:
                    break
                jobs = engine.jobs([(request, handle) for handle in handles[start : start + _TOGETHER]])
                engine.line.do(partial(engine.answer, jobs))
            found[dtype] = {
                **engine.memory,
                "domains": engine.resident,
                "slots_bytes": engine.memory["slot_bytes"] * engine.memory["slots"],
                "seconds": time.perf_counter() - began,
            }
    return found

"""Clients and operators that are no help: a body that comes a byte at a time, hang-ups, idlers, SIGTERM."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.load import OK, Load, Summary, lost
from loadtest.sender import poisson

_SLOW, _PAUSE = 8, 0.005
"""Clients that send a byte at a time, and seconds between two bytes."""
_HANG_UPS = 100
"""Connections a second that are cut in the middle of a request, or before its answer."""
_IDLE = 1000
"""Connections over which nothing is ever sent."""
Trouble = Callable[[Load], AbstractAsyncContextManager[None]]


def hostile(load: Load, rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    """What others see while some clients behave badly: p99 beside that of calm rounds in between."""
    kinds: dict[str, Trouble] = {"slow": _slow, "hang_up": _hang_up, "idle": _idle}
    calm: list[Summary] = []
    found: dict[str, list[Summary]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        calm.append(load.at(rate, seconds))
        for kind, trouble in kinds.items():
            found[kind].append(asyncio.run(_under(trouble, load, rate, seconds)))
    report: dict[str, Any] = {"rate": rate, "calm": _medians(calm)}
    for kind, summaries in found.items():
        figures = _medians(summaries)
        report[kind] = {**figures, "p99_ratio": figures["p99_ms"] / report["calm"]["p99_ms"]}
    return report


def sigterm(load: Load, worker: int, rate: float, drain_seconds: float) -> dict[str, Any]:
    """Tell a loaded service to stop, and count what was sent and never answered.

    The client goes on as if nobody had told it, beyond the end: what cannot be sent then is no loss, because
    a balancer that asks `/readyz` has stopped sending long before. For the same reason those that are cut off
    as the service closes its connections, after the drain, are counted apart.
    """
    before = 2.0
    pid = _parent(worker)
    seconds = before + drain_seconds + 2.0
    due = poisson(rate, seconds, 31)
    sending = load.start(due, grace=1.0)
    try:
        time.sleep(before + 1.0)  # it takes a second to begin
        told = time.time()
        os.kill(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}").exists() and _state(pid) != "Z" and time.time() < told + 60:
            time.sleep(0.01)
        ended = time.time()
        record = sending.wait()
    finally:
        sending.stop()
    moment = record.started + due
    draining = (moment > told) & (moment < told + drain_seconds - 0.1)
    gone, late = lost(record), moment + record.late > told + drain_seconds
    return {
        "rate": rate,
        "lost": int((gone & ~late).sum()),
        "cut_after_drain": int((gone & late).sum()),
        "drain_seconds": drain_seconds,
        "seconds_to_end": ended - told,
        "sent_while_draining": int(draining.sum()),
        "not_answered_while_draining": int((record.status[draining] != OK).sum()),
        "statuses": {str(status): count for status, count in record.statuses().items()},
    }


async def _under(trouble: Trouble, load: Load, rate: float, seconds: float) -> Summary:
    async with trouble(load):
        return await asyncio.to_thread(load.at, rate, seconds)


@asynccontextmanager
async def _slow(load: Load) -> AsyncGenerator[None, None]:
    async def trickle() -> None:
        while True:
            http = load.requests[0]
            head = http.index(b"\r\n\r\n") + 4
            reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
            try:
                writer.write(http[:head])
                for at in range(head, len(http)):
                    writer.write(http[at : at + 1])
                    await asyncio.sleep(_PAUSE)
                await reader.read(1)
            finally:
                writer.close()

    async with _forever(*(trickle for _ in range(_SLOW))):
        yield


@asynccontextmanager
async def _hang_up(load: Load) -> AsyncGenerator[None, None]:
    async def cut() -> None:
        draw = np.random.default_rng(0)
        while True:
            http = load.requests[0]
            _, writer = await asyncio.open_connection("127.0.0.1", load.port)
            writer.write(http[: len(http) if draw.random() < 0.5 else len(http) // 2])
            await asyncio.sleep(1 / _HANG_UPS)
            writer.transport.abort()

    async with _forever(cut):
        yield


@asynccontextmanager
async def _idle(load: Load) -> AsyncGenerator[None, None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 1 << 16)), hard))
    writers = []
    try:
        for _ in range(_IDLE):
            _, writer = await asyncio.open_connection("127.0.0.1", load.port)
            writers.append(writer)
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def _forever(*clients: Callable[[], Any]) -> AsyncGenerator[None, None]:
    """Run clients, each again when its connection is lost, until the block ends."""

    async def again(client: Callable[[], Any]) -> None:
        while True:
            try:
                await client()
            except OSError:
                await asyncio.sleep(_PAUSE)

    tasks = [asyncio.create_task(again(client)) for client in clients]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _medians(summaries: list[Summary]) -> dict[str, float]:
    each = [summary.as_dict() for summary in summaries]
    names = ("p50_ms", "p99_ms", "answered", "lag_p99_ms")
    return {name: float(np.median([one[name] for one in each])) for name in names}


def _parent(worker: int) -> int:
    """The process to signal: a single worker itself, or the parent of several."""
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    above = int(next(line.split()[1] for line in lines if line.startswith("PPid:")))
    return worker if above == os.getpid() else above


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"

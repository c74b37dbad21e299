"""Packs that change while traffic flows, under everything that goes wrong.

Two workers answer requests that are due at a fixed rate. First nothing happens; then packs are promoted and
rolled back, good ones and bad ones, alone and together, while Redis is killed, connections are cut, and a
worker is killed. Every answer is kept, and compared afterwards with what torch computes for the version that
the answer names. Then, each by itself: how long a promotion takes to be seen, and what swaps leave behind in
memory.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from loadtest.fleet import BenchError, Connection, Fleet, ask, megabytes
from loadtest.material import Material, fill, make
from loadtest.redis_server import RedisServer
from loadtest.sender import Plan, Record, Sending
from loadtest.server import free_port, service
from loadtest.storm import Storm
from service.contract import files
from service.stores._open import open_store

TOLERANCE = 1e-5
"""Of a probability's difference from torch's."""
_CHECKED_EVERY = 0.001
"""Seconds between two requests of a probe that looks for a version."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    domains: int = 50
    versions: int = 5
    """Good ones of each domain."""
    queries: int = 4
    """Different requests of each domain."""
    candidates: int = 32
    workers: int = 2
    connections: int = 16
    share: float = 0.3
    """Of the capacity, that is sent."""
    calm_seconds: float = 15.0
    promotes: int = 1000
    rounds: int = 5
    """After each of them it is measured how long the workers take to serve what is live."""
    seconds_a_round: float = 13.0
    outages_a_round: int = 2
    bad_share: float = 0.05
    cuts_a_round: int = 3
    visible: int = 500
    """Promotions whose way to an answer is measured."""
    swaps: int = 10_000
    """After which memory is compared with that after the first hundred."""


def bench(size: Size, folder: Path, console: Console) -> dict[str, Any]:
    """Run all of it, and return the report, which is also written to `folder/report.json`.

    Raises:
        BenchError: a part of it could not be carried out.
    """
    began = time.perf_counter()
    console.rule("train, export, and make versions")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdctr-bench-")))
        material = make(
            place,
            domains=size.domains,
            versions=size.versions,
            queries=size.queries,
            candidates=size.candidates,
        )
        (place / "redis").mkdir()
        redis = stack.enter_context(closing(RedisServer(folder=place / "redis")))
        redis.start()
        asyncio.run(fill(redis.url, material))
        port = free_port()
        settings = {"MDCTR_WORKERS": str(size.workers), "MDCTR_PORT": str(port)}
        with service(material.bundle.path, redis.url, folder / "service.log", settings) as url:
            fleet = Fleet(url, size.workers)
            fleet.workers()
            console.rule("capacity, calm, storm")
            capacity = _capacity(size, material, port, place)
            plan = _paced(size, material, port, capacity * size.share)
            storm = Storm(material, redis, fleet, bad_share=size.bad_share)
            record = _under_traffic(storm, size, plan, place, console)
            console.rule("from promotion to answer")
            visible = asyncio.run(_visible(material, redis.url, fleet, size.visible))
        console.rule("memory")
        memory = _memory(size, material, redis.url, folder)
    report = {
        **_judge(size, material, plan, record, storm),
        "capacity_rps": capacity,
        "rate_rps": capacity * size.share,
        "promote_visible_p50_ms": float(np.percentile(visible, 50) * 1e3),
        "promote_visible_p99_ms": float(np.percentile(visible, 99) * 1e3),
        "promote_visible": len(visible),
        **memory,
        "size": asdict(size),
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print what a person would look at first."""
    table = Table("", "")
    for name in (
        "promotes", "rollbacks", "bad_packs", "outages", "connections_cut", "workers_killed",
        "answers_checked", "answers_wrong", "requests_failed", "requests_lost_with_killed_worker",
        "max_abs_diff", "converge_s_max", "calm_p99_ms", "storm_p99_ms", "p99_ratio",
        "promote_visible_p50_ms", "promote_visible_p99_ms",
        "memory_after_100_swaps_mb", "memory_after_all_swaps_mb", "memory_ratio", "seconds",
    ):  # fmt: skip
        value = report[name]
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}")
    console.print(table)


def markdown(report: Mapping[str, Any]) -> str:
    """What matters of it, as a page has it."""
    rows = (
        ("promotions and rollbacks", f"{report['promotes']:,}"),
        ("of them of packs that must not serve", f"{report['bad_packs']}"),
        ("Redis killed and started again", f"{report['outages']} times"),
        ("all connections to Redis cut", f"{report['connections_cut']} times"),
        ("workers killed", f"{report['workers_killed']}, back after {report['worker_back_s']:.1f} s"),
        ("answers compared with torch", f"{report['answers_checked']:,}"),
        ("answers off by more than 1e-5", f"{report['answers_wrong']}"),
        ("largest difference", f"{report['max_abs_diff']:.1e}"),
        ("requests failed", f"{report['requests_failed']}"),
        ("requests lost with the killed worker", f"{report['requests_lost_with_killed_worker']}"),
        ("every worker serves what is live, after", f"{report['converge_s_max']:.2f} s at most"),
        ("p99, calm", f"{report['calm_p99_ms']:.1f} ms"),
        ("p99, second half of the storm", f"{report['storm_p99_ms']:.1f} ms ({report['p99_ratio']:.2f}x)"),
        (
            "from the promotion to an answer under it",
            f"p50 {report['promote_visible_p50_ms']:.1f} ms, p99 {report['promote_visible_p99_ms']:.1f} ms",
        ),
        (
            f"memory after {report['swaps']:,} swaps",
            f"{report['memory_ratio']:.3f} of that after 100",
        ),
    )
    return "\n".join(["| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])


def _capacity(size: Size, material: Material, port: int, place: Path) -> float:
    """Answers/s when more are due than can be answered."""
    seconds = 4.0
    due = np.linspace(0, seconds, 40_000)
    plan = _plan(size, material, port, due, keep=False)
    record = _sent(plan, place / "capacity")
    finished = record.latency + due
    inside = (finished > 1.0) & (finished < seconds) & (record.status == httpx2.codes.OK)
    if not inside.any():
        raise BenchError("no request was answered")
    return float(inside.sum() / (seconds - 1.0))


def _plan(size: Size, material: Material, port: int, due: npt.NDArray[np.float64], *, keep: bool) -> Plan:
    which = np.random.default_rng(1).integers(0, len(material.queries), len(due))
    return Plan(port, size.connections, [query.http for query in material.queries], due, which, keep)


def _sent(plan: Plan, place: Path) -> Record:
    place.mkdir()
    return Sending(plan, place).wait()


def _paced(size: Size, material: Material, port: int, rate: float) -> Plan:
    """Requests at a fixed rate, for as long as everything takes."""
    seconds = size.calm_seconds + size.rounds * (size.seconds_a_round + 3.0)
    return _plan(size, material, port, np.arange(0, seconds, 1 / rate), keep=True)


def _under_traffic(storm: Storm, size: Size, plan: Plan, place: Path, console: Console) -> Record:
    """Traffic, calm at first, and then the storm."""
    (place / "storm").mkdir()
    sending = Sending(plan, place / "storm")
    try:
        time.sleep(size.calm_seconds + 1.0)  # it takes a second to begin
        asyncio.run(
            storm.rage(
                console,
                rounds=size.rounds,
                promotes=size.promotes // size.rounds,
                seconds=size.seconds_a_round,
                outages=size.outages_a_round,
                cuts=size.cuts_a_round,
            )
        )
        return sending.wait()
    finally:
        sending.stop()


def _judge(size: Size, material: Material, plan: Plan, record: Record, storm: Storm) -> dict[str, Any]:
    """Every answer against torch's, every failure against its cause, and the tail of the latency."""
    checked = wrong = failed = with_worker = 0
    most = 0.0
    for at, status in enumerate(record.status):
        if status != httpx2.codes.OK:
            lost = status == 0 and record.worker[at] == storm.killed != 0
            with_worker, failed = with_worker + lost, failed + (not lost)
            continue
        answer = json.loads(record.answers[at])
        expected = material.expected.get((int(plan.which[at]), answer["pack"]))
        checked += 1
        if expected is None:  # a version that never should serve
            wrong += 1
            continue
        off = float(np.abs(np.asarray(answer["probabilities"]) - expected).max())
        most = max(most, off)
        wrong += not np.less_equal(off, TOLERANCE)  # nan is wrong, too
    due = record.started + plan.due
    answered = ~np.isnan(record.latency)
    calm = answered & (due > record.started + 1.0) & (due < storm.began)
    raging = answered & (due > storm.half) & (due < storm.ended)
    for began, ended in storm.outages:
        raging &= (due < began) | (due > ended)
    calm_p99, storm_p99 = (float(np.percentile(record.latency[part], 99) * 1e3) for part in (calm, raging))
    return {
        "promotes": storm.promotes,
        "rollbacks": storm.rollbacks,
        "bad_packs": storm.bad,
        "outages": len(storm.outages),
        "connections_cut": storm.cuts,
        "workers_killed": int(storm.killed != 0),
        "worker_back_s": storm.back_s,
        "requests": len(record.status),
        "answers_checked": checked,
        "answers_wrong": wrong,
        "max_abs_diff": most,
        "requests_failed": failed,
        "requests_lost_with_killed_worker": with_worker,
        "converge_s": storm.converge_s,
        "converge_s_max": max(storm.converge_s),
        "calm_p50_ms": float(np.percentile(record.latency[calm], 50) * 1e3),
        "calm_p99_ms": calm_p99,
        "storm_p50_ms": float(np.percentile(record.latency[raging], 50) * 1e3),
        "storm_p99_ms": storm_p99,
        "p99_ratio": storm_p99 / calm_p99,
        "sender_late_p99_ms": float(np.nanpercentile(record.late, 99) * 1e3),
        "workers": size.workers,
    }


async def _visible(material: Material, store_url: str, fleet: Fleet, promotes: int) -> list[float]:
    """Seconds from the call that promotes to the end of the first answer under the new version, by worker."""
    store = open_store(store_url, material.bundle.manifest.bundle)
    probes = await fleet.connections()
    chance = random.Random(3)  # noqa: S311
    live = {domain: next(iter(packs)) for domain, packs in material.good.items()}
    await store.promote(live)
    await fleet.converged(live)
    seconds = []
    try:
        for _ in range(promotes):
            domain = chance.choice([*material.good])
            live[domain] = chance.choice([name for name in material.good[domain] if name != live[domain]])
            query = next(query for query in material.queries if query.domain == domain)
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                seen = [group.create_task(_seen(probe, query.http, live[domain])) for probe in probes]
                group.create_task(store.promote({domain: live[domain]}))
            seconds += [task.result() - began for task in seen]
        return seconds
    finally:
        await store.close()
        for _, writer in probes:
            writer.close()


async def _seen(probe: Connection, http: bytes, pack: str) -> float:
    """The moment at which an answer first names a version."""
    wanted = f'"pack":"{pack}"'.encode()
    while wanted not in await ask(probe, http):
        await asyncio.sleep(_CHECKED_EVERY)
    return time.perf_counter()


def _memory(size: Size, material: Material, store: str, folder: Path) -> dict[str, Any]:
    """What one worker's memory is after the first hundred swaps, and after all of them."""
    turns = max(2, size.swaps // len(material.good))
    first = max(1, 100 // len(material.good))
    with service(material.bundle.path, store, folder / "service-memory.log") as url:
        after: dict[int, float] = {}
        fleet = Fleet(url, 1)
        (pid,) = fleet.workers()
        for turn in range(turns):
            chosen = {domain: list(packs)[turn % len(packs)] for domain, packs in material.good.items()}
            asyncio.run(_promote(store, material.bundle.manifest.bundle, chosen))
            asyncio.run(fleet.converged(chosen))
            if turn + 1 in {first, turns}:
                after[turn + 1] = megabytes(pid)
    return {
        "memory_after_100_swaps_mb": after[first],
        "memory_after_all_swaps_mb": after[turns],
        "memory_ratio": after[turns] / after[first],
        "swaps": turns * len(material.good),
    }


async def _promote(url: str, bundle: str, versions: Mapping[str, str]) -> None:
    store = open_store(url, bundle)
    try:
        await store.promote(versions)
    finally:
        await store.close()

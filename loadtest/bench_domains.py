"""Ten thousand domains in one service: what their packs cost by the form they are stored in.

    dense    every row of the first-order table differs from the general pack's
    half     the same, rounded to float16 before training's golden rows were scored
    sparse   one row in twenty differs, which is what tuning on a few thousand rows leaves
    user     the model whose domains correct the weights of the user's own fields only

For each form: bytes in Redis, seconds from the start of the service until all are loaded, memory, and the
latency of a mix of domains (Zipf) beside that of a single domain, in interleaved rounds of one run.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtest.exported import Exported, export
from loadtest.fleet import BenchError, Fleet, ask, megabytes
from loadtest.redis_server import RedisServer
from loadtest.server import service
from loadtest.variants import Query, Variants
from service.contract import files
from service.contract.bundle import Bundle
from service.stores._open import open_store

FORMS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"share": 1.0},
    "half": {"share": 1.0, "half": True},
    "sparse": {"share": 0.05},
    "user": {"share": 1.0},
}
_ZIPF = 1.1
"""Exponent of the domains' popularity; at 1.1 the hundred first of ten thousand get half of the requests."""
_START = 600.0
"""Seconds that a service may take to load all domains."""
_GOLDEN = 8
"""Requests of which packs take their golden rows."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    domains: int = 10_000
    items: int = 20_000
    candidates: int = 100
    rounds: int = 12
    requests: int = 400
    """Of each kind in a round."""
    resident_bytes: int = 4_000_000_000
    forms: tuple[str, ...] = tuple(FORMS)


def bench(size: Size, folder: Path, console: Console) -> dict[str, Any]:
    """Every form, one after the other; the report is also written to `folder/report.json`.

    Raises:
        BenchError: a service did not become ready, or did not answer.
    """
    began = time.perf_counter()
    forms = {}
    for form in size.forms:
        console.rule(f"{size.domains:,} domains, {size.items:,} items, {form}")
        with tempfile.TemporaryDirectory(prefix="mdctr-bench-") as place:
            paradigm = {"name": "plate", "first_order": "user" if form == "user" else "rows"}
            sizes = {"domains": 2, "items": size.items, "users": 1000}
            made = export(Path(place), sizes, {"paradigm": paradigm})
            forms[form] = asyncio.run(_form(form, size, made, folder))
    report = {
        "domains": size.domains,
        "items": size.items,
        "forms": forms,
        "size": asdict(size),
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def show(report: Mapping[str, Any], console: Console) -> None:
    """A row a form."""
    table = Table(
        "form", "pack, bytes", "in Redis, MB", "load, s", "a pack, ms", "resident", "MB resident",
        "process, MB", "p50, one domain", "p50, all", "p99, one domain", "p99, all", "p99 ratio",
        title=f"{report['domains']:,} domains, {report['items']:,} items",
    )  # fmt: skip
    for form, found in report["forms"].items():
        table.add_row(
            form,
            f"{found['pack_bytes']:,}",
            f"{found['redis_bytes'] / 1e6:,.0f}",
            f"{found['load_s']:.1f}",
            f"{found['load_ms_a_pack']:.2f}",
            f"{found['resident']:,}",
            f"{found['resident_bytes'] / 1e6:,.0f}",
            f"{found['process_mb']:,.0f}",
            *(f"{found[name]:.2f}" for name in ("p50_one_ms", "p50_zipf_ms", "p99_one_ms", "p99_zipf_ms")),
            f"{found['p99_ratio']:.2f}",
        )
    console.print(table)


def markdown(report: Mapping[str, Any]) -> str:
    """The same table, as a page has it."""
    sizes = "pack, bytes", "in Redis, MB", "all loaded after", "resident, MB", "process, MB"
    times = "p50 one / all, ms", "p99 one / all, ms", "p99 ratio"
    lines = [f"| {' | '.join(('form', *sizes, *times))} |", "| --- " * 9 + "|"]
    lines += [
        f"| {form} | {found['pack_bytes']:,} | {found['redis_bytes'] / 1e6:,.0f} | {found['load_s']:.0f} s "
        f"| {found['resident_bytes'] / 1e6:,.0f} | {found['process_mb']:,.0f} "
        f"| {found['p50_one_ms']:.2f} / {found['p50_zipf_ms']:.2f} "
        f"| {found['p99_one_ms']:.2f} / {found['p99_zipf_ms']:.2f} | {found['p99_ratio']:.2f} |"
        for form, found in report["forms"].items()
    ]
    return "\n".join(lines)


async def _form(form: str, size: Size, made: Exported, folder: Path) -> dict[str, Any]:
    names = [f"shop-{at:05d}" for at in range(size.domains)]
    variants = Variants(made.model, made.bundle)
    queries = _queries(made, variants, names, size.candidates)
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        redis.start()
        nbytes = await _publish(form, variants, made.bundle, queries, redis.url)
        settings = {"MDCTR_RESIDENT_BYTES": str(size.resident_bytes), "MDCTR_LOG_FORMAT": "json"}
        log = folder / f"service-{form}.log"
        began = time.perf_counter()
        url = stack.enter_context(service(made.bundle.path, redis.url, log, settings, timeout=_START))
        fleet = Fleet(url, 1)
        while not fleet.ask("/readyz")["settled"]:
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - began
        (pid,) = fleet.workers()
        loaded = [each for each in fleet.ask("/v1/domains")["domains"] if each["resident"]]
        one, zipf = await _latencies(fleet, size, names, queries)
        return {
            "pack_bytes": nbytes // size.domains,
            "redis_bytes": int(redis.ask("INFO", "memory")["used_memory"]),
            "load_s": seconds,
            "load_ms_a_pack": seconds / max(len(loaded), 1) * 1e3,
            "resident": len(loaded),
            "resident_bytes": sum(each["bytes"] for each in loaded),
            "process_mb": megabytes(pid),
            "p50_one_ms": _percentile(one, 50),
            "p50_zipf_ms": _percentile(zipf, 50),
            "p99_one_ms": _percentile(one, 99),
            "p99_zipf_ms": _percentile(zipf, 99),
            "p99_ratio": _ratio(zipf, one, 99),
        }


def _queries(made: Exported, variants: Variants, names: Sequence[str], candidates: int) -> dict[str, Query]:
    """A request for each domain."""
    rows = made.prepared.split("test").to_dicts()
    draw = np.random.default_rng(0)
    items = len(made.bundle.items)
    return {
        name: variants.query(name, rows[at % len(rows)], draw.integers(0, items, candidates))
        for at, name in enumerate(names)
    }


async def _publish(
    form: str, variants: Variants, bundle: Bundle, queries: Mapping[str, Query], url: str
) -> int:
    """Put and promote a pack for each domain; gives the bytes of all of them."""
    store = open_store(url, bundle.manifest.bundle)
    golden = [*queries.values()][:_GOLDEN]
    nbytes = 0
    try:
        live = {domain: await store.put(domain, data) for domain, data in bundle.packs()}
        for at, name in enumerate(track(queries, "packs", console=Console(stderr=True))):
            pack = variants.pack(name, at, golden[at % len(golden)], **FORMS[form])
            data = pack.to_bytes(bundle.base)
            nbytes += len(data)
            live[name] = await store.put(name, data)
        await store.promote(live, run="bench")
    finally:
        await store.close()
    return nbytes


async def _latencies(
    fleet: Fleet, size: Size, names: Sequence[str], queries: Mapping[str, Query]
) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]]:
    """By round, seconds of each request: to one domain, and to domains as popular as Zipf's law says."""
    (connection,) = await fleet.connections()
    draw = np.random.default_rng(1)
    popular = draw.permutation(len(names))
    weight = 1.0 / np.arange(1, len(names) + 1) ** _ZIPF
    weight /= weight.sum()

    async def timed(chosen: Sequence[str]) -> npt.NDArray[np.float64]:
        seconds = []
        for name in chosen:
            began = time.perf_counter()
            answer = await ask(connection, queries[name].http)
            seconds.append(time.perf_counter() - began)
            if b'"probabilities"' not in answer:
                raise BenchError(f"{name} answered {answer[:200]!r}")
        return np.array(seconds)

    def mix() -> list[str]:
        return [names[at] for at in popular[draw.choice(len(names), size.requests, p=weight)]]

    await timed([names[popular[0]]] * size.requests)
    await timed(mix())
    one, zipf = [], []
    for _ in range(size.rounds):
        one.append(await timed([names[popular[0]]] * size.requests))
        zipf.append(await timed(mix()))
    connection[1].close()
    return one, zipf


def _ratio(
    above: Sequence[npt.NDArray[np.float64]], below: Sequence[npt.NDArray[np.float64]], q: float
) -> float:
    """The median over rounds of the ratio of percentiles."""
    pairs = zip(above, below, strict=True)
    return float(np.median([np.percentile(one, q) / np.percentile(other, q) for one, other in pairs]))


def _percentile(rounds: Sequence[npt.NDArray[np.float64]], q: float) -> float:
    """In milliseconds: the median over rounds, since a shared machine is not equally fast at all times."""
    return float(np.median([np.percentile(each, q) for each in rounds]) * 1e3)

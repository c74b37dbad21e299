"""HTTP's price: the engine alone, the service over HTTP, and the service that one would write first.

One model, one core for the server and another for the client, and interleaved rounds in which each contender
answers for a slice of a second with each number of candidates:

    flat, engine, asgi   without HTTP (`loadtest.inside`)
    json                 `/v1`, columns, items by id
    binary               `/v2`, the Open Inference Protocol with binary tensors, items by id
    naive                `loadtest.naive`: an object a candidate, all fields, the flat graph

A closed loop on one connection gives requests/s and latencies; one on several, `rps_busy`: what a server
does that never waits for its client. Figures are medians over rounds, and ratios are ratios of those.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtest import naive, wire
from loadtest.closed import Closed
from loadtest.cores import Cores, conditions, divide, on
from loadtest.fleet import BenchError
from loadtest.inside import Inside, Place, inside
from loadtest.stage import Size as ModelSize
from loadtest.stage import Stage, stage
from service.contract import files

FLOOR, AT = 0.40, 500
"""Of the flat graph's requests/s that the naive service must reach, and with how many candidates; else it is
a straw man, and the run is void."""
_REQUESTS = 32
"""Different ones of each number of candidates."""
_ALONE = ("flat", "engine", "asgi")
_TOLERANCE = 1e-4
"""Of a probability's difference between contenders over HTTP."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    candidates: tuple[int, ...] = (1, 32, 100, 500, 1000)
    rounds: int = 7
    seconds: float = 0.3
    """Of a contender in a round, with each number of candidates."""
    connections: int = 4
    """Of the loop that keeps a server busy, for each of its workers."""
    two_workers: bool = True
    model: ModelSize = field(default_factory=ModelSize)


@dataclass
class _Timed:
    """What one contender did with one number of candidates, by round."""

    rps: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


Found = dict[tuple[str, int], _Timed]


def bench(size: Size, folder: Path, console: Console) -> dict[str, Any]:
    """Run it, and return the report, which is also written to `folder/report.json`.

    Raises:
        BenchError: a contender did not answer, or not as the others.
    """
    began = time.perf_counter()
    about = conditions()
    console.print("training and exporting a model, starting servers", style="dim")
    with stage(size.model, folder) as made, tempfile.TemporaryDirectory(prefix="mdctr-bench-") as place:
        found, notes = _measure(size, made, Path(place), console)
    report = {
        **_figures(size, found),
        "notes": notes,
        "conditions": about,
        "size": asdict(size),
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def _measure(size: Size, made: Stage, place: Path, console: Console) -> tuple[Found, list[str]]:
    bundle, cores = made.bundle, divide(1)
    domain = bundle.manifest.domains[0]
    asked = {n: made.asked(n, _REQUESTS, n, one_domain=True) for n in size.candidates}
    bodies = {
        "json": {n: [each.http for each in some] for n, some in asked.items()},
        "binary": {n: [wire.http(bundle, each) for each in some] for n, some in asked.items()},
        "naive": {n: [naive.http(bundle, each) for each in some] for n, some in asked.items()},
    }
    notes = [] if cores.apart else ["client and server share a core"]
    found: Found = {}
    with ExitStack() as stack:
        port = stack.enter_context(made.serve(cores.server))
        plain = stack.enter_context(made.serve_naive(cores.server, place, domain))
        graph = made.flat(place / "flat.onnx", domain)
        about = Place(bundle.path, made.store, graph, made.folder / "inside.log", asked)
        alone: Inside = stack.enter_context(inside(about, cores.server))
        ports = {"json": port, "binary": port, "naive": plain}
        _compare(ports, bodies)
        stack.enter_context(on(cores.client))
        one = {kind: stack.enter_context(closing(Closed(at))) for kind, at in ports.items()}
        some = {
            kind: stack.enter_context(closing(Closed(at, size.connections))) for kind, at in ports.items()
        }
        contenders = {kind: _alone(alone, kind) for kind in _ALONE}
        contenders |= {kind: _over_http(client, bodies[kind]) for kind, client in one.items()}
        contenders |= {f"{kind}_busy": _over_http(client, bodies[kind]) for kind, client in some.items()}
        _rounds(size, contenders, found, console, "one worker")
    if size.two_workers:
        found |= _two_workers(size, made, {kind: bodies[kind] for kind in ("json", "binary")}, console)
        if not divide(2).apart:
            notes.append("two workers: the client shared their cores")
    return found, notes


def _two_workers(
    size: Size, made: Stage, bodies: Mapping[str, Mapping[int, Sequence[bytes]]], console: Console
) -> Found:
    cores: Cores = divide(2)
    found: Found = {}
    with ExitStack() as stack:
        port = stack.enter_context(made.serve(cores.server, workers=2))
        stack.enter_context(on(cores.client))
        contenders = {}
        for kind in bodies:
            client = stack.enter_context(closing(Closed(port, 2 * size.connections)))
            contenders[f"{kind}_two"] = _over_http(client, bodies[kind])
        _rounds(size, contenders, found, console, "two workers")
    return found


Contender = Callable[[int, float], tuple[float, npt.NDArray[np.float64]]]


def _alone(process: Inside, kind: str) -> Contender:
    return lambda n, seconds: (process.rate(kind, n, seconds), np.empty(0))


def _over_http(client: Closed, bodies: Mapping[int, Sequence[bytes]]) -> Contender:
    return lambda n, seconds: client.run(bodies[n], seconds)


def _rounds(
    size: Size, contenders: Mapping[str, Contender], found: Found, console: Console, title: str
) -> None:
    for kind, contender in contenders.items():
        for n in size.candidates:
            contender(n, size.seconds / 3)
            found[kind, n] = _Timed()
    order = [*contenders]
    for at in track(range(size.rounds), title, console=console):
        for n in size.candidates:
            # Each is measured after each other in turn, not always after the same.
            for kind in order[at % len(order) :] + order[: at % len(order)]:
                rps, seconds = contenders[kind](n, size.seconds)
                timed = found[kind, n]
                timed.rps.append(rps)
                if len(seconds):
                    timed.p50.append(float(np.percentile(seconds, 50)) * 1e3)
                    timed.p99.append(float(np.percentile(seconds, 99)) * 1e3)


def _compare(ports: Mapping[str, int], bodies: Mapping[str, Mapping[int, Sequence[bytes]]]) -> None:
    """Who answers otherwise than the others does other work, and is not to be compared with them."""
    for n in bodies["json"]:
        expected = _probabilities("json", ports["json"], bodies["json"][n][0])
        for kind, port in ports.items():
            found = _probabilities(kind, port, bodies[kind][n][0])
            if len(found) != n or not np.allclose(found, expected, rtol=0, atol=_TOLERANCE):
                raise BenchError(f"{kind} answers {n} candidates otherwise than json")


def _probabilities(kind: str, port: int, http: bytes) -> npt.NDArray[Any]:
    with closing(Closed(port)) as client:
        status, body = client.ask(http)
    if status != 200:
        raise BenchError(f"{kind} answered {status}: {body[:200].decode(errors='replace')}")
    return wire.probabilities(body) if kind == "binary" else np.array(json.loads(body)["probabilities"])


def _figures(size: Size, found: Found) -> dict[str, Any]:
    def rps(kind: str, n: int) -> float | None:
        return float(np.median(found[kind, n].rps)) if (kind, n) in found else None

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above and below else None

    engine: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    http: dict[str, dict[str, Any]] = {}
    asgi: dict[str, Any] = {}
    for n in size.candidates:
        alone, flat = rps("engine", n), rps("flat", n)
        engine[str(n)] = {
            "candidates_per_s": n * (alone or 0),
            "rps": alone,
            "flat_rps": flat,
            "ratio_to_flat": ratio(alone, flat),
        }
        asgi[str(n)] = {"rps": rps("asgi", n), "ratio_to_engine": ratio(rps("asgi", n), alone)}
        for kind in ("json", "binary", "naive"):
            figures = {
                "rps": rps(kind, n),
                "rps_busy": rps(f"{kind}_busy", n),
                "p50_ms": float(np.median(found[kind, n].p50)),
                "p99_ms": float(np.median(found[kind, n].p99)),
                "ratio_to_engine": ratio(rps(kind, n), alone),
            }
            if kind == "naive":
                best = max(rps(kind, n) or 0.0, rps(f"{kind}_busy", n) or 0.0)
                plain[str(n)] = {**figures, "ratio_to_flat": ratio(best, flat)}
                continue
            figures |= {
                "ratio_to_naive": ratio(rps(kind, n), rps("naive", n)),
                "ratio_to_naive_busy": ratio(rps(f"{kind}_busy", n), rps("naive_busy", n)),
                "rps_two_workers": rps(f"{kind}_two", n),
            }
            http.setdefault(kind, {})[str(n)] = figures
    at = str(AT)
    valid = at in plain and plain[at]["ratio_to_flat"] >= FLOOR
    return {"engine": engine, "asgi": asgi, "http": http, "naive": plain, "naive_valid": valid}


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a page: a core kept busy by several connections, and latencies of one connection."""
    headings = "candidates", "engine to flat", "naive, requests/s", "JSON", "binary"
    latencies = "JSON, p50 / p99, ms", "binary, p50 / p99, ms"
    lines = [f"| {' | '.join((*headings, *latencies))} |", "| --- " * 7 + "|"]
    for n, engine in report["engine"].items():
        forms = report["http"]["json"][n], report["http"]["binary"][n]
        rates = (f"{form['rps_busy']:,.0f} ({form['ratio_to_naive_busy']:.2f}x)" for form in forms)
        times = (f"{form['p50_ms']:.2f} / {form['p99_ms']:.2f}" for form in forms)
        cells = (
            f"{int(n):,}",
            f"{engine['ratio_to_flat']:.2f}",
            f"{report['naive'][n]['rps_busy']:,.0f}",
            *rates,
            *times,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def show(report: Mapping[str, Any], console: Console) -> None:
    """A row a number of candidates."""
    table = Table(title="requests/s of one core, closed loop on one connection (several connections)")
    kinds = "json", "binary"
    for name in ("candidates", "flat", "engine", "to flat", "asgi", *kinds, "naive"):
        table.add_column(name, justify="right")
    for kind in kinds:
        for name in ("p50 ms", "p99 ms", "to naive", "to engine"):
            table.add_column(f"{kind}: {name}", justify="right")
    for n, engine in report["engine"].items():
        over = [report["http"][kind][n] for kind in kinds]
        table.add_row(
            n,
            f"{engine['flat_rps']:,.0f}",
            f"{engine['rps']:,.0f}",
            f"{engine['ratio_to_flat']:.2f}",
            f"{report['asgi'][n]['rps']:,.0f}",
            *(f"{each['rps']:,.0f} ({each['rps_busy']:,.0f})" for each in (*over, report["naive"][n])),
            *(
                f"{each[name]:.2f}"
                for each in over
                for name in ("p50_ms", "p99_ms", "ratio_to_naive", "ratio_to_engine")
            ),
        )
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    if not report["naive_valid"]:
        console.print(
            f"void: the naive service reached less than {FLOOR:.0%} of the flat graph at {AT} candidates, "
            "so a comparison with it says nothing",
            soft_wrap=True,
        )

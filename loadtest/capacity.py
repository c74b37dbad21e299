"""What a service can do within its budget, and what happens beyond.

    capacity   the highest rate, requests coming independently of each other, at which p99 keeps the budget
    md1        p99 at 70 % of it, beside what a server without any noise would have (M/D/1)
    overload   three times as much for a minute: goodput, refusals, and the time until all is well again
    sigterm    the service is told to stop under load: requests that were sent and never answered
    hostile    slow clients, clients that hang up, a thousand idle ones: what others notice
    ramp       a rate that grows beyond the capacity
    soak       half the capacity for minutes: latencies and memory over time
    scaling    the capacity of 1, 2, 4 and 8 workers

Latencies count from the moment a request is due, at an open-loop client (`loadtest.sender`) on other cores.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest import queueing, rush, trouble, wire
from loadtest.closed import Closed
from loadtest.cores import conditions, divide
from loadtest.fleet import BenchError, Fleet, megabytes
from loadtest.load import Load, Summary, ceiling, summary
from loadtest.sender import poisson
from loadtest.stage import Size as ModelSize
from loadtest.stage import Stage, stage
from service.contract import files

PARTS = ("capacity", "md1", "overload", "sigterm", "hostile", "ramp", "soak", "scaling")
SHORT = ("capacity", "md1", "overload", "sigterm", "hostile")
"""What a run does that is not told otherwise."""
_DRAIN = 2.0
_REQUESTS = 64
_ERRORS = 0.001
"""Share of the requests that may fail at the capacity."""
_LAG, _DISTURBED = 0.3, 0.02
"""Of the budget that the sender's own lag may take at p99, and share of the time that others may have the
server's core. A trial beyond it that fails says nothing of the server, and is repeated."""
_TRIES, _PATIENCE = 6, 120.0
"""Such repetitions, and seconds after which there are none."""
_SENDERS_SHARE = 0.6
"""Of the most that senders can send, which a part may need of them."""
_WORKERS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    candidates: int = 500
    budget_ms: float = 10.0
    """Of p99."""
    workers: int = 1
    body: str = "json"
    """Or `binary`, the Open Inference Protocol with binary tensors."""
    capacity_rps: float | None = None
    """If it is known already."""
    trial_seconds: float = 2.0
    precision: float = 0.03
    md1_seconds: float = 10.0
    overload_seconds: float = 60.0
    overload_times: float = 3.0
    deadline_ms: float = 50.0
    """That requests of an overload tell the server, and after which an answer is worth nothing."""
    hostile_seconds: float = 3.0
    hostile_rounds: int = 3
    ramp_seconds: float = 28.0
    soak_minutes: float = 10.0
    model: ModelSize = field(default_factory=ModelSize)


def search(
    meets: Callable[[float], bool], low: float, high: float, *, precision: float = 0.03, confirm: int = 3
) -> float:
    """The highest rate between `low` and `high` that meets a budget.

    Bisection, then confirmation: the rate found must meet it in most of `confirm` more runs, or less is
    tried, a little at first. Noise makes servers slower and never faster, so a rate that fails is given a
    second chance.

    Args:
        meets: whether a rate does, tried once.
        low: a rate that probably does.
        high: one that does not.
        precision: share of the rate to which it is searched.
        confirm: runs.

    Raises:
        BenchError: not even a hundredth of `low` does.
    """
    least = low / 100
    while not (meets(low) or meets(low)):
        low, high = low / 2, low
        if low < least:
            raise BenchError("no rate meets the budget")
    while high - low > precision * high:
        middle = (low + high) / 2
        if meets(middle) or meets(middle):
            low = middle
        else:
            high = middle
    step = precision
    while sum(meets(low) for _ in range(confirm)) * 2 <= confirm:
        low *= 1 - step
        step = min(2 * step, 0.5)
        if low < least:
            raise BenchError("no rate meets the budget again")
    return low


class Capacity:
    """The parts, against one service at a time."""

    def __init__(self, size: Size, made: Stage, place: Path, console: Console) -> None:
        self._size, self._made, self._place, self._console = size, made, place, console
        asked = made.asked(size.candidates, _REQUESTS)
        binary = size.body == "binary"
        self._requests = [wire.http(made.bundle, each) if binary else each.http for each in asked]
        self.notes: list[str] = []
        self._senders: dict[int, float] = {}

    @contextmanager
    def service(self, workers: int, **settings: str) -> Iterator[Load]:
        """A service, and a client for it.

        Raises:
            BenchError: it does not take such requests.
        """
        cores = divide(workers)
        if not cores.apart:
            self._note(f"{workers} workers: the client shared their cores")
        with self._made.serve(cores.server, workers, **settings) as port:
            with closing(Closed(port)) as client:
                status, body = client.ask(self._requests[0])
            if status != 200:
                raise BenchError(f"the service answered {status} to {self._size.body}: {body[:200]!r}")
            load = Load(port, self._requests, cores, self._place, connections=64 * workers)
            load.workers = sorted(Fleet(f"http://127.0.0.1:{port}", workers).workers())
            yield load

    def capacity(self, load: Load, workers: int) -> dict[str, Any]:
        """Search for the highest rate."""
        size = self._size
        saturated = load.busy(2.0, 4 * workers)
        self._console.print(f"  kept busy it answers {saturated:,.0f} requests/s", style="dim")
        trials: list[Summary] = []
        until = time.monotonic() + _PATIENCE

        def meets(rate: float) -> bool:
            for _ in range(_TRIES if time.monotonic() < until else 1):
                found = load.at(rate, max(size.trial_seconds, 2000 / rate))
                trials.append(found)
                kept = found.p99_ms <= size.budget_ms and found.answered >= 1 - _ERRORS
                void = not kept and (found.lag_p99_ms > _LAG * size.budget_ms or found.disturbed > _DISTURBED)
                self._console.print(
                    f"  {rate:,.0f}/s: p99 {found.p99_ms:.2f} ms, answered {found.answered:.2%}, "
                    f"lag {found.lag_p99_ms:.2f} ms, disturbed {found.disturbed:.1%}"
                    f"{', void' if void else '' if kept else ', not met'}",
                    style="dim",
                )
                if not void:
                    return kept
            self._note("other processes took the cores, and the capacity is higher than could be shown")
            return False

        rate = search(meets, 0.4 * saturated, 1.1 * saturated, precision=size.precision)
        return {
            "capacity_rps": rate,
            "saturated_rps": saturated,
            "share_of_saturated": rate / saturated,
            "trials": [trial.as_dict() for trial in trials],
        }

    def enough(self, load: Load, rate: float) -> None:
        """Have as many senders as such a rate needs, if the cores allow, and note it if they do not."""
        cores = load.cores
        for senders in range(1, len(cores.client) + 1):
            if senders not in self._senders:
                self._senders[senders] = ceiling(cores, self._place, senders)
            load.senders = senders
            if rate <= _SENDERS_SHARE * self._senders[senders]:
                return
        self._note(
            f"{rate:,.0f}/s is more than the senders, {self._senders[load.senders]:,.0f}/s, are good for"
        )

    @property
    def senders(self) -> dict[str, float]:
        """Small requests a second that so many senders can send at most."""
        return {str(count): rate for count, rate in self._senders.items()}

    def md1(self, load: Load, capacity: float, workers: int) -> dict[str, Any]:
        """P99 at 70 % of the capacity, beside M/D/1's."""
        rate = 0.7 * capacity
        service = workers / load.busy(2.0, 4 * workers)
        alone = load.alone(1.0)
        found = load.at(rate, self._size.md1_seconds)
        try:
            wait = queueing.wait_quantile(0.99, rate / workers, service)
        except ValueError as error:  # the machine was slower just now
            self._note(f"md1: {error}")
            wait = math.inf
        predicted = (alone + wait) * 1e3
        return {
            **found.as_dict(),
            "service_ms": service * 1e3,
            "alone_ms": alone * 1e3,
            "load": rate / workers * service,
            "predicted_p99_ms": predicted,
            "ratio": found.p99_ms / predicted,
        }

    def soak(self, load: Load, capacity: float) -> dict[str, Any]:
        """Half the capacity for minutes: every thirty seconds p99, every few the workers' memory."""
        rate, seconds = 0.5 * capacity, self._size.soak_minutes * 60
        pids = load.workers
        due = poisson(rate, seconds, 41)
        began = time.monotonic()
        sending = load.start(due)
        memory: list[tuple[float, float]] = []
        try:
            while (now := time.monotonic() - began) < seconds:
                memory.append((now, sum(megabytes(pid) for pid in pids)))
                time.sleep(min(5.0, seconds / 20))
            record = sending.wait()
        finally:
            sending.stop()
        window = min(30.0, seconds / 4)
        starts = np.arange(0, seconds - window / 2, window)
        parts = [summary(record, rate, (due >= at) & (due < at + window)) for at in starts]
        half = [each for each in memory if each[0] > seconds / 2]
        moments, sizes = (np.array(column) for column in zip(*half, strict=True))
        return {
            "minutes": self._size.soak_minutes,
            **summary(record, rate, np.ones(len(due), bool)).as_dict(),
            "p99_ms_by_window": [part.p99_ms for part in parts],
            "memory_mb": memory,
            "memory_growth_mb_an_hour": float(np.polyfit(moments, sizes, 1)[0] * 3600),
        }

    def scaling(self) -> dict[str, Any]:
        """The capacity of more and more workers, each with a core of its own."""
        found: dict[str, Any] = {}
        for workers in _WORKERS:
            if not divide(workers).apart:
                self._note(f"scaling: there are not enough cores for {workers} workers and a client")
                break
            with self.service(workers) as load:
                self.enough(load, 1.2 * load.busy(1.0, 4 * workers))
                found[str(workers)] = self.capacity(load, workers)
        for count, each in found.items():
            each["efficiency"] = each["capacity_rps"] / int(count) / found["1"]["capacity_rps"]
        return found

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._console.print(f"note: {text}")


def run(size: Size, parts: tuple[str, ...], folder: Path, console: Console) -> dict[str, Any]:
    """Run the parts, and return the report, which is also written to `folder/report.json`.

    Raises:
        BenchError: one could not be carried out.
    """
    began = time.perf_counter()
    report: dict[str, Any] = {
        "budget_ms": size.budget_ms,
        "candidates": size.candidates,
        "workers": size.workers,
        "body": size.body,
        "conditions": conditions(),
    }
    console.print("training and exporting a model", style="dim")
    with stage(size.model, folder) as made, tempfile.TemporaryDirectory(prefix="mdctr-load-") as place:
        this = Capacity(size, made, Path(place), console)
        if set(parts) - {"scaling"}:
            report |= _parts(size, parts, this, console)
        if "scaling" in parts:
            console.rule("scaling")
            report["scaling"] = this.scaling()
    report |= {
        "sender_max_rps": this.senders,
        "notes": this.notes,
        "size": asdict(size),
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def _parts(size: Size, parts: tuple[str, ...], this: Capacity, console: Console) -> dict[str, Any]:
    report: dict[str, Any] = {}
    workers = size.workers
    deadline = size.deadline_ms / 1e3
    with this.service(workers, drain_seconds=str(_DRAIN)) as load:
        if size.capacity_rps is None:
            console.rule("capacity")
            this.enough(load, 1.2 * load.busy(0.5, 4 * workers))
            report |= this.capacity(load, workers)
        capacity: float = report.setdefault("capacity_rps", size.capacity_rps or 0.0)
        if "md1" in parts:
            console.rule("70 % of it")
            report["md1"] = this.md1(load, capacity, workers)
        if "hostile" in parts:
            console.rule("hostile clients")
            report["hostile"] = trouble.hostile(
                load, 0.5 * capacity, size.hostile_seconds, size.hostile_rounds
            )
        if "ramp" in parts:
            console.rule("ramp")
            this.enough(load, 1.6 * capacity)
            report["ramp"] = rush.ramp(load, capacity, size.ramp_seconds, deadline)
        if "soak" in parts:
            console.rule("soak")
            report["soak"] = this.soak(load, capacity)
        if "overload" in parts:
            console.rule("overload")
            this.enough(load, size.overload_times * capacity)
            # As many as are under way within a deadline: none is to wait at the client.
            load.connections = max(load.connections, math.ceil(2 * size.overload_times * capacity * deadline))
            much = rush.Rush(capacity, size.overload_times, size.overload_seconds)
            report["overload"] = rush.overload(load, much, deadline, size.budget_ms)
        if "sigterm" in parts:
            console.rule("SIGTERM")
            report["sigterm"] = trouble.sigterm(load, load.workers[0], 0.5 * capacity, _DRAIN)
    return report


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print what a person would look at first."""
    table = Table(
        "", "", title=f"{report['candidates']} candidates, {report['workers']} workers, {report['body']}"
    )
    for name, value in _rows(report):
        shown = "never" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name, shown)
    console.print(table)
    if "ramp" in report:
        steps = Table("of capacity", "requests/s", "answered", "shed", "p50 ms", "p99 ms", title="ramp")
        for step in report["ramp"]:
            steps.add_row(
                f"{step['share_of_capacity']:.2f}",
                f"{step['rate']:,.0f}",
                f"{step['answered']:.1%}",
                f"{step['shed']:.1%}",
                f"{step['p50_ms']:.2f}",
                f"{step['p99_ms']:.2f}",
            )
        console.print(steps)
    for note in report["notes"]:
        console.print(f"note: {note}", soft_wrap=True)


_SHOWN: Mapping[str, tuple[str, ...]] = {
    "md1": ("rate", "load", "service_ms", "alone_ms", "p99_ms", "predicted_p99_ms", "ratio"),
    "overload": ("offered_rps", "goodput_ratio", "p99_ms", "shed_rate", "recovery_s", "sender_lag_p99_ms"),
    "sigterm": ("lost", "cut_after_drain", "not_answered_while_draining", "seconds_to_end"),
    "soak": ("minutes", "p99_ms", "errors", "memory_growth_mb_an_hour"),
}


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("capacity_rps", "budget_ms", "saturated_rps"):
        if name in report:
            yield name, report[name]
    for part, names in _SHOWN.items():
        for name in names if part in report else ():
            yield f"{part}: {name}", report[part][name]
    if "hostile" in report:
        yield "hostile: calm p99_ms", report["hostile"]["calm"]["p99_ms"]
        for kind in ("slow", "hang_up", "idle"):
            yield f"hostile: p99 with {kind}, ratio", report["hostile"][kind]["p99_ratio"]
    for count, found in report.get("scaling", {}).items():
        yield f"scaling: {count} workers, capacity_rps", found["capacity_rps"]
        yield f"scaling: {count} workers, efficiency", found["efficiency"]
    for senders, rate in report["sender_max_rps"].items():
        yield f"sender_max_rps: {senders}", rate

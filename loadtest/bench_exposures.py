"""What the exposure log costs: processor time of a service with it, over that of one without.

    off         no log
    off, again  the same once more: how far the two are apart is noise
    on          MDCTR_EXPOSURES

Three services on one core have the same bundle and settings and are asked the same requests in turn. What
a service's process spent is read from its own clock, which counts every thread, from the beginning of its
turn to the beginning of its next one: so what the log's threads write after the last answer counts, and so
does what a service does while it is not asked, in all three alike. A round's figure is that over its answers,
a cost the median of the rounds' ratios.

Beside it stands the ratio of all rounds together: a part of the log becomes Parquet in some rounds only,
which a median may pass over. A log that drops rows would be cheap, so the rows that are in the files must be
as many as the answers, with all items, or the run ends in an error.

How long it takes to find a request's arms is measured besides, without HTTP: it is part of every answer of
a service with experiments, and what they are logged for.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from loadtest.closed import Closed
from loadtest.cores import conditions, divide, on
from loadtest.fleet import BenchError, Fleet
from loadtest.sheet import Sheet
from loadtest.stage import Size as ModelSize
from loadtest.stage import Stage, stage
from service.contract import files
from service.contract.exposure import batches
from service.experiments.arms import units
from service.experiments.assign import assign
from service.experiments.document import Experiments, parse

OFF, AGAIN, ON = "off", "off, again", "on"
_REQUESTS = 32
"""Different ones of each number of candidates."""
_FLUSHED = 1.5
"""Seconds after which what was logged before is written."""
_DEADLINE_MS = 60_000
"""No request may be refused because the machine has other things to do."""
_DOMAIN = "books"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    candidates: tuple[int, ...] = (100, 500)
    rounds: int = 25
    seconds: float = 2.0
    """Of a service in a round."""
    connections: int = 4
    """Of the client, so that a service never waits for it."""
    blocks: int = 200
    """Of a thousand requests that are assigned to arms."""
    model: ModelSize = field(default_factory=ModelSize)


@dataclass
class _Spent:
    """What one service did with one number of candidates."""

    clock: list[float] = field(default_factory=list)
    """Processor seconds at the beginning of each turn, and after the last."""
    answers: list[int] = field(default_factory=list)
    """By turn."""

    @property
    def microseconds(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(rounds,) of processor time an answer."""
        return np.diff(self.clock) / self.answers * 1e6

    @property
    def whole(self) -> float:
        """Microseconds an answer, of all rounds together."""
        return (self.clock[-1] - self.clock[0]) / sum(self.answers) * 1e6


def bench(size: Size, folder: Path, console: Console) -> dict[str, Any]:
    """Run it, and return the report, which is also written to `folder/report.json`.

    Raises:
        BenchError: a service did not answer, or the log lacks an answer.
    """
    began = time.perf_counter()
    about, cores = conditions(), divide(1)
    console.print("training and exporting a model, starting services", style="dim")
    with stage(size.model, folder) as made, tempfile.TemporaryDirectory(prefix="mdctr-bench-") as place:
        log = Path(place) / "log"
        found, asked = _measure(size, made, log, console)
        logged = _logged(log)
    if logged["rows"] != asked["answers"] or logged["items"] != asked["items"]:
        raise BenchError(f"the log has {logged}, and answered were {asked}")
    report = {
        "candidates": {str(n): _figures(found[n]) for n in size.candidates},
        "log": logged,
        "assignment": assignment(size.blocks),
        "notes": [] if cores.apart else ["client and services share a core"],
        "conditions": about,
        "size": asdict(size),
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def assignment(blocks: int) -> dict[str, float]:
    """Microseconds that a request's arms take: of its units, a holdout, and two layers of two experiments."""
    document, asked = _document(), [{"id": at, "country": "de"} for at in range(1000)]
    fields: Mapping[str, Any] = {"context": {}}
    took = []
    for _ in range(blocks):
        began = time.perf_counter()
        for user in asked:
            assign(document, units(user, None, None, "r"), _DOMAIN, {**fields, "user": user}, began)
        took.append((time.perf_counter() - began) / len(asked) * 1e6)
    low, median, high = np.percentile(took, [10, 50, 90]).tolist()
    return {"us": median, "us_low": low, "us_high": high}


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a page."""
    return _table(report).markdown()


def show(report: Mapping[str, Any], console: Console) -> None:
    """A row a number of candidates."""
    _table(report).show(console)
    log, arms = report["log"], report["assignment"]
    console.print(
        f"{log['rows']:,} answers are in the log, in {log['files']} files of {log['bytes'] / 1e6:,.0f} MB; "
        f"a request's arms take {arms['us']:.1f} us",
        soft_wrap=True,
    )
    for note in report["notes"]:
        console.print(f"note: {note}", soft_wrap=True)


def _table(report: Mapping[str, Any]) -> Sheet:
    heads = ["candidates", "us an answer, without", "with the log", "the log's cost", "80 % of rounds"]
    heads += ["all rounds together", "without, again", "80 % of rounds"]
    lines = []
    for n, found in report["candidates"].items():
        cost, noise = found["cost"], found["noise"]
        cells = [n, f"{found['us'][OFF]:.0f}", f"{found['us'][ON]:.0f}", f"{cost['share']:+.1%}"]
        cells += [f"{cost['low']:+.1%} to {cost['high']:+.1%}", f"{cost['whole']:+.1%}"]
        cells += [f"{noise['share']:+.1%}", f"{noise['low']:+.1%} to {noise['high']:+.1%}"]
        lines.append(cells)
    return Sheet(heads, lines)


def _measure(
    size: Size, made: Stage, log: Path, console: Console
) -> tuple[dict[int, dict[str, _Spent]], dict[str, int]]:
    """What every service spent, by number of candidates; and what the one with the log answered."""
    cores = divide(1)
    patient = {"deadline_ms": str(_DEADLINE_MS)}
    settings = {OFF: patient, AGAIN: patient, ON: {**patient, "exposures": str(log)}}
    found: dict[int, dict[str, _Spent]] = {}
    asked = {"answers": 0, "items": 0}
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(made.serve(cores.server, 1, **each)) for name, each in settings.items()
        }
        process = {name: _worker(port) for name, port in ports.items()}
        stack.enter_context(on(cores.client))
        draw = np.random.default_rng(0)
        for n in size.candidates:
            bodies = [each.http for each in made.asked(n, _REQUESTS, n)]
            spent = found[n] = {name: _Spent() for name in settings}
            for at in track(range(-1, size.rounds), f"{n} candidates", console=console):
                # None always comes after the same one, which may leave the caches cold.
                for name in draw.permutation([*settings]).tolist():
                    before = _core_seconds(process[name])
                    answers = _ask(ports[name], bodies, size)
                    if name == ON:
                        asked["answers"] += answers
                        asked["items"] += answers * n
                    if at >= 0:  # the first round is to warm them up
                        spent[name].clock.append(before)
                        spent[name].answers.append(answers)
            time.sleep(_FLUSHED)
            for name, each in spent.items():
                each.clock.append(_core_seconds(process[name]))
    return found, asked


def _ask(port: int, bodies: Sequence[bytes], size: Size) -> int:
    # A service closes what is idle for seconds, so each turn has connections of its own.
    with closing(Closed(port, size.connections)) as client:
        return len(client.run(bodies, size.seconds)[1])


def _figures(found: Mapping[str, _Spent]) -> dict[str, Any]:
    return {
        "us": {name: float(np.median(each.microseconds)) for name, each in found.items()},
        "us_whole": {name: each.whole for name, each in found.items()},
        "answers": {name: sum(each.answers) for name, each in found.items()},
        "cost": _more(found[ON], found[OFF]),
        "noise": _more(found[AGAIN], found[OFF]),
    }


def _more(one: _Spent, other: _Spent) -> dict[str, float]:
    """What one spent more than the other, as a share: the median and 80 % of rounds, and all together."""
    low, share, high = np.percentile(one.microseconds / other.microseconds - 1, [10, 50, 90]).tolist()
    return {"share": share, "low": low, "high": high, "whole": one.whole / other.whole - 1}


def _logged(log: Path) -> dict[str, int]:
    """What is in the log: rows, items, files and their bytes."""
    paths = sorted(log.iterdir())
    found = {"rows": 0, "items": 0, "files": len(paths), "bytes": sum(path.stat().st_size for path in paths)}
    for path in paths:
        for batch in batches(path):
            items = len(batch["ids"].flatten())
            if items != len(batch["scores"].flatten()):
                raise BenchError(f"{path.name} has not as many scores as items")
            found["rows"] += len(batch)
            found["items"] += items
    return found


def _document() -> Experiments:
    def experiment(name: str, start: float, end: float) -> dict[str, Any]:
        arms = {"control": {"weight": 1}, "new": {"weight": 1, "fallback": "general"}}
        return {
            "name": name,
            "unit": "user",
            "slice": [start, end],
            "arms": arms,
            "domains": [_DOMAIN],
            "targeting": {"user.country": ["de", "fr"]},
        }

    layers = {
        layer: {"experiments": [experiment(f"{layer}-one", 0, 0.5), experiment(f"{layer}-two", 0.5, 1)]}
        for layer in ("ranking", "features")
    }
    return parse(json.dumps({"version": 1, "holdout": 0.05, "layers": layers}).encode())


def _worker(port: int) -> int:
    (process,) = Fleet(f"http://127.0.0.1:{port}", 1).workers()
    return process


def _core_seconds(process: int) -> float:
    """What a process has had of cores until now: its clock as clock_getcpuclockid(3) names it."""
    return time.clock_gettime((~process << 3) | 2)

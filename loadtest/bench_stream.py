"""Training on rows that stay on the disk: how fast beside rows in memory, and in how much memory.

Speed is that of the training loop over the same rows, streamed and in memory, an epoch of each in turn; once
more on one core, where the thread that reads ahead has none of its own. Memory is the peak of a process that
does nothing else: one that prepares, one that trains and evaluates, for each number of rows. What that one
streams is on the disk alone when it begins.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.bench_training import Ours, recipe_for
from service.contract import files
from service.contract.errors import MdctrError, RunError
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.data.stream import BUFFER, Stream
from training.fit import Fit
from training.recipe import Choice, Recipe

_DOMAINS = {"feed": 0.7, "shop": 0.2, "ads": 0.1}
_HELD_OUT = 50_000
"""Rows of validation, and of test, at most: they are in memory."""


PARTS = ("race", "runs")


class StreamError(MdctrError):
    """A process that was measured ended; the text says why."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rows: tuple[int, ...] = (1_000_000, 10_000_000, 100_000_000)
    """Of the data sets whose preparation and training are measured."""
    in_memory: int = 10_000_000
    """The largest of them that is trained on in memory, too."""
    raced: int = 1_000_000
    """Rows of the epochs that are timed in turn."""
    rounds: int = 7
    users: int = 20_000
    items: int = 5_000
    part: int = 250_000
    """Rows that the simulator makes at a time."""


def bench(size: Size, out: Path, console: Console, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Measure, and return the report, which is also `report.json` in `out`.

    Prepared data is written to `out` and removed.

    Args:
        size: how much.
        out: a folder.
        console: for what is being done.
        parts: of `PARTS`; the figures of the others stay as an earlier report has them.

    Raises:
        StreamError: a process ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    report |= {"settings": {**asdict(size), "rows": list(size.rows)}, "cores": os.cpu_count()}
    if "race" in parts:
        report["race"] = {}
        with tempfile.TemporaryDirectory(dir=out, prefix="data-") as made:
            for cores in (2, 1):
                console.print(f"racing on {cores} core(s)")
                report["race"][str(cores)] = _child("race", size.raced, size, Path(made), cores)
        files.write(path, json.dumps(report, indent=1))
    if "runs" in parts:
        report["runs"] = []
    for rows in size.rows if "runs" in parts else ():
        with tempfile.TemporaryDirectory(dir=out, prefix="data-") as made:
            free = shutil.disk_usage(made).free
            console.print(f"{rows:,} rows; {free / 1e9:.0f} GB of disk are free")
            found = {"rows": rows, "prepare": _child("prepare", rows, size, Path(made))}
            found["stream"] = _child("stream", rows, size, Path(made))
            found["memory"] = _child("memory", rows, size, Path(made)) if rows <= size.in_memory else None
        report["runs"].append(found)
        files.write(path, json.dumps(report, indent=1))
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    lines = [
        "| training rows | prepared in | on disk | peak, preparing | trained on | rows/s | peak, training |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for found in report.get("runs", ()):
        made = found["prepare"]
        for name, run in (("stream", found["stream"]), ("memory", found["memory"])):
            if run is None:
                continue
            cells = [
                f"{run['rows']:,}",
                f"{made['seconds']:,.0f} s",
                f"{made['disk_mb']:,.0f} MB",
                f"{made['peak_mb']:,.0f} MB",
                {"stream": "streamed", "memory": "in memory"}[name],
                f"{run['rows_per_s']:,.0f}",
                f"{run['peak_mb']:,.0f} MB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| cores | rows/s, streamed | rows/s, in memory | ratio |", "| ---: | ---: | ---: | ---: |"]
    for cores, race in report.get("race", {}).items():
        rates = race["rows_per_s"]
        cells = [cores, f"{rates['stream']:,.0f}", f"{rates['memory']:,.0f}", f"{race['ratio']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def show(report: Mapping[str, Any], console: Console) -> None:
    """The report's tables."""
    for block in markdown(report).strip().split("\n\n"):
        heads, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.split("\n")
        )
        table = Table(*heads)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def recipe(rows: int, size: Size) -> Recipe:
    """What is trained: as `bench-training` does, for one epoch over about so many training rows."""
    shared = {"users": size.users, "items": size.items, "part": size.part}
    held_out = min(_HELD_OUT, rows // 8)
    every = rows + 2 * held_out
    domains = {name: max(1, round(share * every)) for name, share in _DOMAINS.items()}
    held = held_out / every
    data = {"name": "synthetic", "domains": domains, "held_out": held, **shared}
    chosen = recipe_for("synthetic")
    joint = chosen.joint.model_copy(update={"epochs": 1})
    return chosen.model_copy(update={"data": Choice.model_validate(data), "joint": joint})


def _child(what: str, rows: int, size: Size, folder: Path, cores: int = 2) -> dict[str, Any]:
    """Measure in a process of its own."""
    task = {"what": what, "rows": rows, "size": asdict(size), "folder": str(folder), "cores": cores}
    command = [sys.executable, "-m", "loadtest.bench_stream", json.dumps(task)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it said nothing, and ended with {done.returncode}"]
        raise StreamError(f"{what} of {rows:,} rows: {said[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a process does that is measured."""
    size = Size(**{**task["size"], "rows": tuple(task["size"]["rows"])})
    folder, rows = Path(task["folder"]), int(task["rows"])
    if task["cores"] == 1:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    chosen = recipe(rows, size)
    began = time.perf_counter()
    prepared = prepare(chosen.data.name, chosen.data.options, folder)
    if task["what"] == "prepare":
        disk = sum(path.stat().st_size for path in prepared.path.rglob("*") if path.is_file())
        return {"seconds": time.perf_counter() - began, "disk_mb": disk / 1e6, "peak_mb": peak_mb()}
    if prepared.blocks is None:
        raise RunError(f"{prepared.path} has no blocks")
    stream = Stream.open(prepared.blocks)
    if task["what"] == "race":
        return _race(chosen, prepared, stream, size.rounds, folder)
    if task["what"] == "stream":
        _forget(prepared.blocks)
    trained = stream if task["what"] == "stream" else stream.load()
    return _trained(chosen, prepared, trained, folder / task["what"])


def _forget(folder: Path) -> None:
    """Have the system drop its copies of files, so that they are read from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mb() -> float:
    """The most memory that this process has had, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    raise RunError("/proc/self/status has no VmHWM")


def _trained(recipe: Recipe, prepared: Prepared, rows: Rows | Stream, folder: Path) -> dict[str, Any]:
    """A whole run, evaluation included; its speed is that of its epoch."""
    before, n = peak_mb(), len(rows)
    run = Run(folder, recipe, prepared)
    Fit(recipe, prepared, run, Progress(disable=True), rows)()
    (epoch,) = run.logged()
    metrics = run.metrics or {}
    return {
        "rows": n,
        "rows_per_s": n / epoch["seconds"],
        "peak_mb": peak_mb(),
        "before_mb": before,
        "auc": metrics["macro"]["pack"]["auc"],
        "best_auc": float(np.mean(list(prepared.about.oracle_auc.values()))),
    }


def _race(recipe: Recipe, prepared: Prepared, stream: Stream, rounds: int, folder: Path) -> dict[str, Any]:
    """Epochs in turn, in an order that changes; the first of each warms up."""
    rows: dict[str, Any] = {"stream": stream, "memory": stream.load()}
    cores = len(os.sched_getaffinity(0))
    contenders = {name: Ours(recipe, prepared, rows[name], folder / f"{name}-{cores}") for name in rows}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    order = np.random.default_rng(0)
    for at in range(rounds + 1):
        for name in order.permutation(list(rows)).tolist():
            taken = contenders[name].seconds()
            if at:
                seconds[name].append(taken)
    rate = {name: len(stream) / float(np.median(taken)) for name, taken in seconds.items()}
    return {
        "rows": len(stream),
        "rows_per_s": rate,
        "ratio": float(np.median(np.divide(seconds["memory"], seconds["stream"]))),
        "seconds": seconds,
        "buffer": BUFFER * stream.blocks.most,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure what the argument says, and print it."""
    sys.stdout.write(json.dumps(measure(json.loads(arguments[0]))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

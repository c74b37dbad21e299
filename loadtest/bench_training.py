"""Rows a second of the training loop, beside a bare loop and other libraries' trainers, in one run.

Every contender trains the same backbone at equal settings on the same rows, of which it reads the same
columns: single-valued ids, because all of them can. Rounds are interleaved, since a shared machine is not
equally fast at all times; a round of a contender is one epoch, and its rate is that of its median round.

    mdctr           `Fit`'s epoch of `mix` over the backbone, without general rows, as nobody else has them
    mdctr_general   the same with them, as a recipe has it by default
    bare            the same network and optimiser with nothing around, of DeepFM (`loadtest.rivals.bare`)
    torch_rechub, fuxictr   their model of that name, loaders and trainers, in processes and an environment of
                    their own; they do not read the domain, and not all their models have a first-order part
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

import loadtest
from loadtest.rivals import bare
from service.contract import files, plugins
from service.contract.errors import MdctrError
from service.contract.schema import FeatureSchema
from training.backbones import deepfm
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.loop import Loop, Outcome, Pass, Standing
from training.ranks import ALONE, Ranks
from training.recipe import Choice, Optimisation, Recipe

RIVALS = ("torch_rechub", "fuxictr")
PYTHON = Path(loadtest.__file__).parents[1] / ".venv-rivals" / "bin" / "python"
"""The interpreter that has them."""


class RivalError(MdctrError):
    """Another library's process did not start, or ended; the text says why."""


class Stopped(Loop):
    """Keeps what it should have trained."""

    work: Pass

    def __call__(self, work: Pass) -> Outcome:
        """Nothing but note the work."""
        self.work = work
        return Outcome(0, 0, float("nan"))


class Ours(Fit):
    """The real loop, stopped before its first epoch, to be run epoch by epoch."""

    epochs = 0

    def __init__(
        self, recipe: Recipe, prepared: Prepared, rows: Rows, folder: Path, *, ranks: Ranks = ALONE
    ) -> None:
        run = Run(folder, recipe, prepared, ranks)
        super().__init__(recipe, prepared, run, Progress(disable=True), rows, ranks=ranks)
        self.loop = self.stopped = Stopped(recipe.seed, self.progress, ranks=ranks)
        self._all_domains(self.model.paradigm.stages()[0])
        self.optimiser = _adam(self.stopped.work.module, recipe)

    def seconds(self) -> float:
        """Train for an epoch and say how long it took."""
        self.epochs += 1
        at = Standing(self.epochs - 1, 0, 0.0, {})
        steps = self.loop.steps(self.stopped.work, at, self.optimiser, ())
        return seconds_of(lambda: deque(steps, maxlen=0))


class Bare:
    """The bare loop, with the same optimiser."""

    def __init__(self, recipe: Recipe, prepared: Prepared, rows: Rows) -> None:
        options = deepfm.Options()
        schema = prepared.schema
        self.model = bare.BareDeepFM(
            schema.rows,
            len(schema.fields),
            len(prepared.domains),
            dim=recipe.dim,
            hidden=options.hidden,
            dropout=options.dropout,
        )
        self.model.train()
        self.optimiser = _adam(self.model, recipe)
        # int64, which plain PyTorch is a little faster with.
        ids = torch.cat([rows.request_ids, rows.item_ids], 1).long()
        self.columns, self.batch = (ids, rows.domain, rows.label), recipe.joint.batch

    def seconds(self) -> float:
        """Train for an epoch and say how long it took."""
        return seconds_of(lambda: bare.epoch(self.model, self.optimiser, self.columns, self.batch))


class Rival:
    """Another library in a process of its own, which trains for an epoch when it is told to.

    Raises:
        RivalError: it did not start.
    """

    def __init__(self, name: str, python: Path, task: Path, threads: int) -> None:
        if not python.exists():
            raise RivalError(f"there is no {python}; `make bench-training` makes it")
        self.name, self.log = name, task.with_name(f"{name}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", f"loadtest.rivals.{name}", str(task)],
                cwd=Path(loadtest.__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.versions: dict[str, str] = self._answer()
        except RivalError:
            self.close()
            raise

    def seconds(self) -> float:
        """Have it train for an epoch; how long that took by its own clock."""
        if self.process.stdin is None:
            raise RivalError(f"{self.name} has no input")
        with suppress(BrokenPipeError):  # it has ended, and the answer says why
            self.process.stdin.write("round\n")
            self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.communicate()

    def peak_mb(self) -> float | None:
        """The most that it has had in memory."""
        return _peak_mb(self.process.pid)

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RivalError(f"{self.name} ended: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def recipe_for(data: str, backbone: str = "deepfm") -> Recipe:
    """What is compared: a mixed model over a backbone at its defaults, on a data set, in batches of 2048."""
    return Recipe(
        name="bench-training",
        data=Choice(name=data),
        backbone=Choice(name=backbone),
        paradigm=Choice(name="mix"),
        joint=Optimisation(batch=2048),
    )


def bench(
    recipe: Recipe, out: Path, *, data: Path, rounds: int, batches: int, python: Path = PYTHON
) -> dict[str, Any]:
    """Run all contenders and return the report, which is also written to `out`.

    Args:
        recipe: `mix` over a backbone at its defaults; else as you like.
        out: the report's file.
        data: the folder of prepared data sets.
        rounds: how many are counted; one goes before them to warm up.
        batches: in a round, or as many as there are rows for.
        python: the interpreter that has the other libraries.

    Returns:
        `rows_per_s` by contender, None for one that did not start, which `missing` gives the reason of;
        `ratio_to_<contender>`, of mdctr's rate; `peak_mb` in memory, of the processes (mdctr's has the bare
        loop, too), None where the system does not say; and what was run.
    """
    prepared = readable_by_all(prepare(recipe.data.name, recipe.data.options, data))
    every = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
    batches = max(1, min(batches, len(every) // recipe.joint.batch))
    rows = every.shuffled(0)[: batches * recipe.joint.batch]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdctr-bench-")))
        contenders: dict[str, Callable[[], float]] = {}
        for name, share in (("mdctr", 0.0), ("mdctr_general", recipe.general_share)):
            shared = recipe.model_copy(update={"general_share": share})
            contenders[name] = Ours(shared, prepared, rows, folder / name).seconds
        versions = {name: version(name) for name in ("mdctr", "torch", "numpy")}
        missing = {}
        if recipe.backbone.name == "deepfm":
            contenders["bare"] = Bare(recipe, prepared, rows).seconds
        else:
            missing["bare"] = f"it has no {recipe.backbone.name}"
        task = _task(recipe, prepared.schema, rows, folder)
        rivals: dict[str, Rival] = {}
        for name in RIVALS:
            try:
                rival = Rival(name, python, task, recipe.threads)
            except RivalError as error:
                missing[name] = str(error)
                continue
            stack.callback(rival.close)
            rivals[name] = rival
            contenders[name] = rival.seconds
            versions |= {name: rival.versions["version"], f"{name}.torch": rival.versions["torch"]}
        seconds = _race(contenders, rounds)
        peaks = {"mdctr": _peak_mb(os.getpid()), **{name: rival.peak_mb() for name, rival in rivals.items()}}
    rate = {name: len(rows) / float(np.median(taken)) for name, taken in seconds.items()}
    report: dict[str, Any] = {
        "data": prepared.about.source,
        "backbone": recipe.backbone.name,
        "fields": [field.key for field in prepared.schema.fields],
        "vocabulary": prepared.schema.rows,
        "rows": len(rows),
        "rows_per_s": {name: rate.get(name) for name in ("mdctr", "mdctr_general", "bare", *RIVALS)},
        **{f"ratio_to_{name}": _ratio(rate, name) for name in ("bare", *RIVALS)},
        "peak_mb": peaks,
        "missing": missing,
        "rounds": rounds,
        "batches": batches,
        "batch": recipe.joint.batch,
        "threads": recipe.threads,
        "versions": versions,
    }
    if out.exists() and "ranks" in (before := json.loads(out.read_text())):
        report["ranks"] = before["ranks"]  # `loadtest.bench_ranks` measures those
    files.write(out, json.dumps(report, indent=1))
    return report


def readable_by_all(prepared: Prepared) -> Prepared:
    """The data with the fields that any library reads: one id a row."""
    fields = tuple(f for f in prepared.schema.fields if not f.numeric and not f.multiple)
    return replace(prepared, schema=FeatureSchema(fields=fields))


def show(report: Mapping[str, Any], console: Console) -> None:
    """The report as a table."""
    table = Table("contender", "rows/s", "mdctr, times as fast", "version")
    for name, rate in report["rows_per_s"].items():
        ratio = report.get(f"ratio_to_{name}")
        table.add_row(
            name,
            "-" if rate is None else f"{rate:,.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            report["versions"].get(name, ""),
        )
    console.print(table)
    console.print(
        f"{report['backbone']} on {report['data']}, {len(report['fields'])} fields, "
        f"V = {report['vocabulary']:,}; median of {report['rounds']} interleaved rounds of "
        f"{report['batches']} batches of {report['batch']}, {report['threads']} thread",
        soft_wrap=True,
    )
    peaks = {name: peak for name, peak in report["peak_mb"].items() if peak is not None}
    console.print("peak memory:", ", ".join(f"{name} {peak:,.0f} MB" for name, peak in peaks.items()))
    for name, reason in report["missing"].items():
        console.print(f"{name} did not run: {reason}", soft_wrap=True)


def _race(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender's rounds, each in an order of its own: who comes after whom matters."""
    names, order = list(contenders), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for at in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
        for name in order.permutation(names):
            taken = contenders[name]()
            if at:
                seconds[name].append(taken)
    return seconds


def _task(recipe: Recipe, schema: FeatureSchema, rows: Rows, folder: Path) -> Path:
    """Write what a rival is to train, for its process to read: every field's ids count from 0."""
    columns: dict[str, Any] = {}
    fields: dict[str, int] = {}
    for key, slot in schema.slots.items():
        ids = rows.request_ids if slot.field.scope == "request" else rows.item_ids
        name = key.replace(".", "_")  # torch allows no dot in a module's name
        columns[name] = ids[:, slot.at.start].numpy().astype(np.int64) - slot.offset
        fields[name] = slot.field.rows
    np.savez(folder / "rows.npz", label=rows.label.numpy(), **columns)
    options = plugins.load("training.backbones", recipe.backbone.name).Options()
    task = {
        "rows": str(folder / "rows.npz"),
        "fields": fields,
        "dim": recipe.dim,
        "backbone": recipe.backbone.name,
        "options": options.model_dump(mode="json"),
        "batch": recipe.joint.batch,
        "lr": recipe.joint.lr,
        "l2": recipe.joint.l2,
        "threads": recipe.threads,
    }
    files.write(folder / "task.json", json.dumps(task))
    return folder / "task.json"


def _adam(module: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """As `Fit` makes it, and the fastest that PyTorch has."""
    options = recipe.joint
    return torch.optim.Adam(module.parameters(), lr=options.lr, weight_decay=options.l2, fused=True)


def _peak_mb(process: int) -> float | None:
    """The most MB that a process has had in memory; None where Linux does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def _ratio(rate: Mapping[str, float], name: str) -> float | None:
    return rate["mdctr"] / rate[name] if name in rate else None


def seconds_of(run: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

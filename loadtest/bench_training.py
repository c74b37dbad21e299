"""Rows a second of the training loop, beside a bare loop and other libraries' trainers, in one run.

Every contender trains the same model at equal settings on the same rows, of which it reads the same columns:
single-valued ids, because all of them can. Rounds are interleaved, since a shared machine is not equally fast
at all times; a round of a contender is one epoch, and its rate is that of its median round.

    mdctr           `Fit`'s epoch of a paradigm over a backbone, without general rows, as nobody else has them
    mdctr_general   the same with them, as a recipe has it by default
    bare            the same network and optimiser with nothing around, of DeepFM (`loadtest.rivals.bare`)
    torch_rechub, fuxictr, deepctr_torch   their model of that name, loaders and trainers, in processes and an
                    environment of their own

A contender's rows a second of a core's time are there, too: what else the machine does moves those less.

A backbone stands under `mix`, and the others' models do not read the domain; not all of them have a
first-order part. Shared bottom, MMoE and PLE stand over an MLP, and are compared with models of several
tasks, one for each domain, whose loss counts a row for its own domain's task alone (`loadtest.rivals.tasks`).

Equal there: rows, columns, batch, Adam and its learning rate; the embeddings' width; the experts' number,
widths, BatchNorm, ReLU and dropout; one linear layer as a gate; towers' widths; one level of PLE. Not equal:
here a row goes through its own domain's tower, gate and experts, there through those of all domains; here is
a first-order part, and a tower for unseen domains, which these rows do not train. What a library cannot
leave out its module says.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

import loadtest
from loadtest.rivals import bare
from loadtest.rivals.rival import Rival, RivalError, peak_mb
from loadtest.sheet import Sheet
from service.contract import files, plugins
from service.contract.schema import FeatureSchema
from training.backbones import deepfm
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.loop import Loop, Outcome, Pass, Standing
from training.ranks import ALONE, Ranks
from training.recipe import Choice, Optimisation, Recipe

RIVALS = ("torch_rechub", "fuxictr", "deepctr_torch")
BACKBONES = ("deepfm", "wide_deep", "fnn", "dcn", "dcnv2", "xdeepfm", "autoint")
PARADIGMS = ("shared_bottom", "mmoe", "ple")
"""That other libraries have, too."""
MLP = "wide_deep"
"""The backbone that is an MLP, which is what they have those over."""
PYTHON = Path(loadtest.__file__).parents[1] / ".venv-rivals" / "bin" / "python"
"""The interpreter that has them."""
Measured = dict[str, list[float]]
"""By contender and round."""
_RANKS = "ranks"
"""What `loadtest.bench_ranks` writes into the same file."""


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


class Contender(NamedTuple):
    """Who is timed."""

    seconds: Callable[[], float]
    """Trains for an epoch and says how long it took."""
    process: int = os.getpid()
    """Where it does that."""


def recipe_for(data: str, backbone: str | None = None, paradigm: str = "mix") -> Recipe:
    """What is compared: a paradigm over a backbone at their defaults, on a data set, in batches of 2048.

    Without a backbone it is DeepFM under `mix`, and an MLP under any other paradigm.
    """
    return Recipe(
        name="bench-training",
        data=Choice(name=data),
        backbone=Choice(name=backbone or ("deepfm" if paradigm == "mix" else MLP)),
        paradigm=Choice(name=paradigm),
        joint=Optimisation(batch=2048),
    )


def recipes(data: str) -> list[Recipe]:
    """Every model that another library has."""
    return [
        *(recipe_for(data, backbone) for backbone in BACKBONES),
        *(recipe_for(data, paradigm=paradigm) for paradigm in PARADIGMS),
    ]


def model_of(recipe: Recipe) -> str:
    """What a report and the other libraries call it: after its paradigm, where that is over an MLP."""
    if recipe.paradigm.name == "mix":
        return recipe.backbone.name
    over = "" if recipe.backbone.name == MLP else f"_{recipe.backbone.name}"
    return f"{recipe.paradigm.name}{over}"


def bench(
    recipe: Recipe, out: Path, *, data: Path, rounds: int, batches: int, python: Path = PYTHON
) -> dict[str, Any]:
    """Run all contenders of a model and return what it came to, which `out` then has by the model's name.

    Args:
        recipe: a paradigm over a backbone, both at their defaults; else as you like.
        out: the report's file; its figures of other models stay.
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
    model = model_of(recipe)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdctr-bench-")))
        contenders: dict[str, Contender] = {}
        for name, share in (("mdctr", 0.0), ("mdctr_general", recipe.general_share)):
            shared = recipe.model_copy(update={"general_share": share})
            contenders[name] = Contender(Ours(shared, prepared, rows, folder / name).seconds)
        versions = {name: version(name) for name in ("mdctr", "torch", "numpy")}
        missing = {}
        if model == "deepfm":
            contenders["bare"] = Contender(Bare(recipe, prepared, rows).seconds)
        else:
            missing["bare"] = f"it has no {model}"
        task = _task(recipe, prepared, rows, folder)
        rivals: dict[str, Rival] = {}
        for name in RIVALS:
            try:
                rival = Rival(name, python, task, recipe.threads)
            except RivalError as error:
                missing[name] = str(error)
                continue
            stack.callback(rival.close)
            rivals[name] = rival
            contenders[name] = Contender(rival.seconds, rival.process.pid)
            versions |= {name: rival.versions["version"], f"{name}.torch": rival.versions["torch"]}
        seconds, core = _race(contenders, rounds)
        peaks = {"mdctr": peak_mb(os.getpid()), **{name: rival.peak_mb() for name, rival in rivals.items()}}
    rate, by_core = (
        {name: len(rows) / float(np.median(taken)) for name, taken in measured.items()}
        for measured in (seconds, core)
    )
    report: dict[str, Any] = {
        "data": prepared.about.source,
        "backbone": recipe.backbone.name,
        "paradigm": recipe.paradigm.name,
        "domains": len(prepared.domains),
        "fields": [field.key for field in prepared.schema.fields],
        "vocabulary": prepared.schema.rows,
        "rows": len(rows),
        "rows_per_s": {name: rate.get(name) for name in ("mdctr", "mdctr_general", "bare", *RIVALS)},
        **{f"ratio_to_{name}": _ratio(rate, name) for name in ("bare", *RIVALS)},
        "rows_per_core_s": {name: by_core.get(name) for name in ("mdctr", "mdctr_general", "bare", *RIVALS)},
        **{f"core_ratio_to_{name}": _ratio(by_core, name) for name in ("bare", *RIVALS)},
        "peak_mb": peaks,
        "missing": missing,
        "rounds": rounds,
        "batches": batches,
        "batch": recipe.joint.batch,
        "threads": recipe.threads,
        "versions": versions,
    }
    before = json.loads(out.read_text()) if out.exists() else {}
    files.write(out, json.dumps({**before, model: report}, indent=1))
    return report


def readable_by_all(prepared: Prepared) -> Prepared:
    """The data with the fields that any library reads: one id a row."""
    fields = tuple(f for f in prepared.schema.fields if not f.numeric and not f.multiple)
    return replace(prepared, schema=FeatureSchema(fields=fields))


def markdown(report: Mapping[str, Any]) -> str:
    """The file's models as a table for a page."""
    first = next(report[name] for name in report if name != _RANKS)
    heads = ["model", "mdctr, rows/s"]
    for rival in RIVALS:
        heads += [
            f"{rival.replace('_', '-')} {first['versions'].get(rival, '')}".strip(),
            "times as fast",
            "by core time",
        ]
    lines = []
    for name, found in report.items():
        if name == _RANKS:
            continue
        cells = [name, f"{found['rows_per_s']['mdctr']:,.0f}"]
        for rival in RIVALS:
            rate, ratio = found["rows_per_s"][rival], found[f"ratio_to_{rival}"]
            core = found[f"core_ratio_to_{rival}"]
            cells += ["-"] * 3 if rate is None else [f"{rate:,.0f}", f"{ratio:.2f}", f"{core:.2f}"]
        lines.append(cells)
    return Sheet(heads, lines).markdown()


def show(report: Mapping[str, Any], console: Console) -> None:
    """A model's report as a table."""
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
        f"{report['backbone']} under {report['paradigm']} on {report['data']}, "
        f"{len(report['fields'])} fields, V = {report['vocabulary']:,}; "
        f"median of {report['rounds']} interleaved rounds of {report['batches']} batches "
        f"of {report['batch']}, {report['threads']} thread",
        soft_wrap=True,
    )
    peaks = {name: peak for name, peak in report["peak_mb"].items() if peak is not None}
    console.print("peak memory:", ", ".join(f"{name} {peak:,.0f} MB" for name, peak in peaks.items()))
    for name, reason in report["missing"].items():
        console.print(f"{name} did not run: {reason}", soft_wrap=True)


def _race(contenders: Mapping[str, Contender], rounds: int) -> tuple[Measured, Measured]:
    """Seconds of every contender's rounds, and seconds that it had of a core in them.

    Each round is in an order of its own: who comes after whom matters.
    """
    names, order = list(contenders), np.random.default_rng(0)
    seconds, core = ({name: list[float]() for name in names} for _ in range(2))
    for at in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
        for name in order.permutation(names):
            before = _core_seconds(contenders[name].process)
            taken = contenders[name].seconds()
            if at:
                seconds[name].append(taken)
                core[name].append(_core_seconds(contenders[name].process) - before)
    return seconds, core


def _task(recipe: Recipe, prepared: Prepared, rows: Rows, folder: Path) -> Path:
    """Write what a rival is to train, for its process to read: every field's ids count from 0."""
    columns: dict[str, Any] = {}
    fields: dict[str, int] = {}
    for key, slot in prepared.schema.slots.items():
        ids = rows.request_ids if slot.field.scope == "request" else rows.item_ids
        name = key.replace(".", "_")  # torch allows no dot in a module's name
        columns[name] = ids[:, slot.at.start].numpy().astype(np.int64) - slot.offset
        fields[name] = slot.field.rows
    np.savez(folder / "rows.npz", label=rows.label.numpy(), domain=rows.domain.numpy(), **columns)
    options, paradigm = (
        plugins.load(f"training.{kind}s", getattr(recipe, kind).name).Options()
        for kind in ("backbone", "paradigm")
    )
    task = {
        "rows": str(folder / "rows.npz"),
        "fields": fields,
        "dim": recipe.dim,
        "model": model_of(recipe),
        "options": options.model_dump(mode="json"),
        "paradigm_options": paradigm.model_dump(mode="json"),
        "domains": len(prepared.domains),
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


def _core_seconds(process: int) -> float:
    """What a process has had of cores until now: its clock as clock_getcpuclockid(3) names it."""
    return time.clock_gettime((~process << 3) | 2)


def _ratio(rate: Mapping[str, float], name: str) -> float | None:
    return rate["mdctr"] / rate[name] if name in rate else None


def seconds_of(run: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

"""What a student costs to serve, beside the same model without its teacher.

    without teacher          PLATE over ids and texts' vectors, trained on clicks alone
    without teacher, again   the same bundle in a second service: how far the two are apart is noise
    student                  the same, distilled from a language model

Trained, exported, published, served and asked as in `loadtest.bench_csamp`. `latency_ratio` is the student's
time over that of the model without teacher.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from loadtest import bench_models
from loadtest.bench_csamp import ratios
from loadtest.bench_models import Size
from service.contract import files
from training.checkpoint import Run
from training.compare import merged
from training.data.prepare import prepare
from training.fit import Fit
from training.recipe import Recipe, parse

WITHOUT, AGAIN, STUDENT = "without teacher", "without teacher, again", "student"
_RATIOS = {"latency_ratio": STUDENT, "noise": AGAIN}


def train(folder: Path, data: Path, change: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """The shipped recipe with its teacher and without, an epoch of each; gives the runs by model.

    Args:
        folder: for the runs, the teacher's among them.
        data: the folder of prepared data sets.
        change: what else is otherwise in the recipe.
    """
    path = Path(str(resources("training"))) / "recipes" / "distil_synthetic.yaml"
    short = {"joint": {"epochs": 1}, "tuning": {"epochs": 1}, "distil": {"teacher": {"joint": {"epochs": 1}}}}
    student = merged(merged(Recipe.load(path).model_dump(mode="json"), short), change or {})
    runs = {}
    for name, values in {WITHOUT: {**student, "distil": None}, STUDENT: student}.items():
        recipe = parse(Recipe, {**values, "name": f"bench-{name.replace(' ', '-')}"}, name)
        prepared = prepare(recipe.data.name, recipe.data.options, data)
        runs[name] = folder / name.replace(" ", "-")
        with Progress(disable=True) as bars:
            Fit(recipe, prepared, Run(runs[name], recipe, prepared), bars)()
    return runs


def bench(size: Size, runs: Mapping[str, Path], data: Path, folder: Path, console: Console) -> dict[str, Any]:
    """Time them; the report is also `folder/report.json`.

    Args:
        size: how much is timed.
        runs: as `train` gives them.
        data: the folder of prepared data sets.
        folder: for the report and logs.
        console: for progress.

    Raises:
        BenchError: a service did not answer.
    """
    served = {WITHOUT: runs[WITHOUT], AGAIN: runs[WITHOUT], STUDENT: runs[STUDENT]}
    report = bench_models.bench(replace(size, connections=1), served, data, folder, console)
    report = ratios(report, _RATIOS) | report
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report

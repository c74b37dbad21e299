"""What text costs when it is asked for: a model of ids, the same after CSAMP, and one with a language model.

    ids         shared bottom, trained on clicks alone
    ids, again  the same bundle in a second service: how far the two are apart is noise
    csamp       shared bottom, aligned with what a language model makes of the items' texts, then trained
    ctr-bert    the language model in the graph, which reads the text of each candidate in each request

All are trained here, exported, published, served and compared with torch, and asked in turn as
`loadtest.bench_models` does, with one request under way. `latency_ratio` is csamp's time over that of ids.
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
from loadtest.bench_models import Size
from loadtest.sheet import Sheet
from service.contract import files
from service.contract.errors import RunError
from training import text
from training.checkpoint import Run
from training.compare import merged
from training.data.prepare import prepare
from training.fit import Fit
from training.recipe import Recipe, parse

IDS, AGAIN, CSAMP, CTR_BERT = "ids", "ids, again", "csamp", "ctr-bert"
_RATIOS = {"latency_ratio": CSAMP, "noise": AGAIN, "language_model_ratio": CTR_BERT}
DATA: dict[str, dict[str, Any]] = {
    "synthetic": {"name": "synthetic", "domains": {"feed": 12_000, "shop": 6_000, "new": 2_000}},
    "movielens_1m": {"name": "movielens_1m", "rows": 20_000},
}


def train(
    source: Mapping[str, Any], folder: Path, data: Path, change: Mapping[str, Any] | None = None
) -> dict[str, Path]:
    """The shipped recipes, an epoch of each; gives the runs by model.

    Args:
        source: the data.
        folder: for the runs.
        data: the folder of prepared data sets.
        change: what else is otherwise in the recipes.
    """
    csamp, ctr_bert = (_recipe(name) for name in ("csamp_movielens", "ctr_bert_movielens"))
    short = {"joint": {"epochs": 1}, **(change or {})}
    model = _model(ctr_bert["paradigm"]["model"])
    wanted = {
        IDS: merged(csamp, {**short, "data": source, "align": None}),
        CSAMP: merged(csamp, {**short, "data": source, "align": {"epochs": 1, "model": model}}),
        CTR_BERT: merged(
            ctr_bert, {**short, "data": {"of": source, "model": model}, "paradigm": {"model": model}}
        ),
    }
    runs = {}
    for name, values in wanted.items():
        recipe = parse(Recipe, {**values, "name": f"bench-{name}"}, name)
        prepared = prepare(recipe.data.name, recipe.data.options, data)
        runs[name] = folder / name
        with Progress(disable=True) as bars:
            Fit(recipe, prepared, Run(runs[name], recipe, prepared), bars)()
    return runs


def bench(size: Size, runs: Mapping[str, Path], data: Path, folder: Path, console: Console) -> dict[str, Any]:
    """Time them; the report is also `folder/report.json`.

    Beside what `loadtest.bench_models` reports are ratios to ids, each with 95 % of resamples of the rounds.

    Args:
        size: how much is timed.
        runs: as `train` gives them.
        data: the folder of prepared data sets.
        folder: for the report and logs.
        console: for progress.

    Raises:
        BenchError: a service did not answer.
    """
    served = {IDS: runs[IDS], AGAIN: runs[IDS], CSAMP: runs[CSAMP], CTR_BERT: runs[CTR_BERT]}
    alone = replace(size, connections=1)
    report = bench_models.bench(alone, served, data, folder, console, whole=(CTR_BERT,))
    report = ratios(report, _RATIOS) | report
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def ratios(report: Mapping[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """Of some models, by what each ratio is called: p50 and p99 as times the first model's, low and high."""
    return {
        name: {share: report["models"][model][f"{share}_ratio"] for share in ("p50", "p99")}
        for name, model in models.items()
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a page."""
    return _table(report).markdown()


def show(report: Mapping[str, Any], console: Console) -> None:
    """A row a model."""
    _table(report).show(console)
    for note in report["notes"]:
        console.print(f"note: {note}", soft_wrap=True)


def _table(report: Mapping[str, Any]) -> Sheet:
    times = f"times that of {next(iter(report['models']))}"
    heads = ["model", "p50, ms", times, "95 %", "p99, ms", times, "95 %", "answers"]
    lines = []
    for name, found in report["models"].items():
        cells = [name]
        for share in ("p50", "p99"):
            ratio, low, high = found[f"{share}_ratio"]
            cells += [f"{found[f'{share}_ms']:.2f}", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"]
        lines.append([*cells, f"{found['answers']:,}"])
    return Sheet(heads, lines)


def _recipe(name: str) -> dict[str, Any]:
    path = Path(str(resources("training"))) / "recipes" / f"{name}.yaml"
    return Recipe.load(path).model_dump(mode="json")


def _model(name: str) -> str:
    """The recipes' language model where it is installed."""
    try:
        text.folder(name)
    except RunError:
        return "tiny"
    return name

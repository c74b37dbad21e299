"""`python -m training`: prepare, fit, evaluate.

Results go to stdout, progress to stderr; bad input is one line and exit code 2.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.contract import cli, files
from service.contract.errors import RunError
from training import checkpoint, evaluation, figures, ranks
from training.compare import Comparison
from training.data import prepare as preparation
from training.data.batches import Rows
from training.data.prepare import Split
from training.evaluation import Labelled
from training.fit import Fit, device_of
from training.plan import Plan
from training.recipe import Recipe
from training.start import Start

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
Data = Annotated[Path, typer.Option(help="Folder of prepared data sets.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(context_settings=OVERRIDES)
def prepare(context: typer.Context, recipe: Path, data: Data = Path("runs/data")) -> None:
    """Make a recipe's data ready: split, schema, Parquet. Prints the folder."""
    found = _prepared(Recipe.load(recipe, context.args), data)
    cli.result(str(found.path))


@app.command(context_settings=OVERRIDES)
def fit(
    context: typer.Context,
    recipe: Path,
    *,
    out: Annotated[Path, typer.Option(help="The run's folder; a run killed there goes on.")],
    start: Annotated[
        Path | None, typer.Option("--from", help="A complete run, whose weights and schema are gone on from.")
    ] = None,
    data: Data = Path("runs/data"),
    as_json: AsJson = False,
) -> None:
    """Train a recipe. `--tuning.lr 1e-3` and the like change single values.

    Under `torchrun` all its processes train it together.
    """
    resolved = Recipe.load(recipe, context.args)
    old = None if start is None else Start.open(start, data, resolved)
    with ranks.opened(device_of(resolved)) as all_ranks:
        prepared = all_ranks.first(lambda: _prepared(resolved, data, old))
        run = checkpoint.Run(out, resolved, prepared, all_ranks, start=None if old is None else old.digest)
        with progress() if all_ranks.leads else Progress(disable=True) as bars:
            Fit(resolved, prepared, run, bars, ranks=all_ranks, start=old)()
    if all_ranks.leads:
        _show(run.metrics or {}, as_json)


@app.command()
def evaluate(
    run: Path,
    split: Annotated[Split, typer.Option(help="Which rows.")] = "test",
    data: Data = Path("runs/data"),
    as_json: AsJson = False,
) -> None:
    """Evaluate a complete run on one split."""
    _, prepared, model, _ = checkpoint.load(run, data)
    valid = Labelled.of(prepared, "valid").rows
    _show(evaluation.evaluate(model, Labelled.of(prepared, split), valid).report, as_json)


@app.command()
def compare(
    plan: Path,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; one killed there goes on.")],
    data: Data = Path("runs/data"),
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = os.cpu_count() or 1,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; again for more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models: settings chosen on validation, several seeds, one table."""
    chosen = Plan.load(plan)
    with progress() as bars:
        report = Comparison(chosen, out, data, processes=processes, progress=bars, only=row or ())()
    parts = {name: report[name] for name in report.get("subjects", ())} or {"": report}
    for name, part in parts.items():
        tables = [figures.table(part)]
        tables += [figures.differences(part)] if "differences_from" in part else []
        tables += [f"{question}\n\n{figures.pairs(part, question)}" for question in part.get("pairs", ())]
        tables += [figures.newcomers(part)] if "unseen" in part else []
        files.write(out / name / "table.md", "\n".join(tables))
        for drawn in figures.draw(part, out / name):
            Console(stderr=True).print(f"drew {drawn}")
    if as_json:
        cli.result(json.dumps(report))
        return
    for name, part in parts.items():
        _compared(part, name)


def _compared(report: dict[str, Any], title: str) -> None:
    shown = figures.shown(report)
    heads = (*(f"AUC, {name}" for name in shown), "macro", "log loss", "ECE", "owned")
    table = Table("model", *heads, title=title or None)
    for name, row in report["rows"].items():
        aucs = [f"{row[domain]['auc_mean']:.4f}" for domain in shown]
        macro = row["macro"]
        spread = f"{macro['auc_mean']:.4f} ± {macro['auc_std']:.4f}"
        rest = (
            f"{macro['logloss_mean']:.4f}",
            f"{macro['ece_mean']:.4f}",
            f"{row['parameters_of_domain']:,}",
        )
        table.add_row(name, *aucs, spread, *rest)
    Console(width=max(130, Console().width)).print(table)
    cli.result(f"chosen on validation: {report['chosen_on_validation']}")


@app.command()
def layers(
    run: Path,
    out: Annotated[Path, typer.Option(help="Folder for layers.npz and layers.png.")],
    *,
    rows: Annotated[int, typer.Option(min=20, help="Test rows to draw.")] = 600,
    data: Data = Path("runs/data"),
) -> None:
    """What the layers of a Uni-CTR teacher, and its domains' networks, make of test rows, by t-SNE."""
    from training.teachers import layers as reading  # noqa: PLC0415 - needs the extra `text`
    from training.teachers.unictr import UniCTR  # noqa: PLC0415

    _, prepared, model, _ = checkpoint.load(run, data)
    if not isinstance(model.paradigm, UniCTR):
        raise RunError(f"{run} is no run of training.teachers.unictr")
    test = prepared.split("test")
    frame = test.sample(min(rows, test.height), seed=0)
    found = reading.layers(model.paradigm, Rows.encode(frame, prepared.schema, prepared.domains))
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"domain": frame["domain"].to_numpy(), **found}
    np.savez_compressed(buffer, **arrays)
    files.write(out / "layers.npz", buffer.getvalue())
    figures.scatter(found, frame["domain"].to_list(), out / "layers.png")
    cli.result(str(out / "layers.png"))


@app.command()
def vectors(
    items: Path,
    prepared: Annotated[Path, typer.Option(help="The folder of prepared data that a model was trained on.")],
    out: Annotated[Path, typer.Option(help="Parquet for `python -m export items`.")],
) -> None:
    """Vectors of new items' texts: reads `text` or `name` of a Parquet or CSV file, writes `item.text`."""
    from training.vectors import described  # noqa: PLC0415 - needs the extra `text`

    try:
        read = pl.read_csv(items) if items.suffix == ".csv" else pl.read_parquet(items)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"cannot read {items}: {' '.join(str(error).split())}") from error
    buffer = io.BytesIO()
    described(read, preparation.Prepared.open(prepared)).write_parquet(buffer)
    files.write(out, buffer.getvalue())
    cli.result(str(out))


def progress() -> Progress:
    """One line a stage, on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True))


def _prepared(recipe: Recipe, data: Path, start: Start | None = None) -> preparation.Prepared:
    fitted = None if start is None else start.fitted
    return preparation.prepare(recipe.data.name, recipe.data.options, data, fitted)


def _show(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.result(json.dumps(metrics))
        return
    table = Table("domain", "rows", "AUC", "GAUC", "log loss", "NE", "ECE", "AUC, joint", "AUC, general")
    for domain, found in (*metrics["domains"].items(), ("macro", metrics["macro"])):
        own = found["pack"]
        values = [own[name] for name in ("auc", "gauc", "logloss", "ne", "ece")]
        values += [found[which]["auc"] for which in ("joint", "general")]
        table.add_row(domain, f"{own['rows']:,.0f}", *(f"{value:.4f}" for value in values))
    Console(width=max(110, Console().width)).print(table)


if __name__ == "__main__":
    cli.run(app)

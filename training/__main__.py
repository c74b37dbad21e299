"""`python -m training`: prepare, fit, evaluate.

Results go to stdout, progress to stderr; bad input is one line and exit code 2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.contract import cli
from training import checkpoint
from training.data import prepare as preparation
from training.data.batches import Rows
from training.data.prepare import Split
from training.fit import Fit
from training.fit import evaluate as evaluate_model
from training.recipe import Recipe

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
    out: Annotated[Path, typer.Option(help="The run's folder; a run killed there goes on.")],
    data: Data = Path("runs/data"),
    as_json: AsJson = False,
) -> None:
    """Train a recipe. `--tuning.lr 1e-3` and the like change single values."""
    resolved = Recipe.load(recipe, context.args)
    prepared = _prepared(resolved, data)
    run = checkpoint.Run(out, resolved, prepared)
    with progress() as bars:
        Fit(resolved, prepared, run, bars)()
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
    _show(
        evaluate_model(model, Rows.encode(prepared.split(split), prepared.schema, prepared.domains)), as_json
    )


def progress() -> Progress:
    """One line a stage, on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True))


def _prepared(recipe: Recipe, data: Path) -> preparation.Prepared:
    return preparation.prepare(recipe.data.name, recipe.data.options, data)


def _show(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.result(json.dumps(metrics))
        return
    table = Table("domain", "rows", "AUC", "log loss", "AUC, general pack")
    for domain, found in metrics["domains"].items():
        own, general = found["pack"], found["general"]
        table.add_row(
            domain, f"{own['rows']:,}", f"{own['auc']:.4f}", f"{own['logloss']:.4f}", f"{general['auc']:.4f}"
        )
    table.add_row("macro", "", f"{metrics['macro_auc']:.4f}", f"{metrics['macro_logloss']:.4f}", "")
    Console().print(table)


if __name__ == "__main__":
    cli.run(app)

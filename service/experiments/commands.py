"""`python -m service experiments`: documents of experiments, on the command line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.contract import cli
from service.experiments.document import Change, Experiments, ExperimentsError, Unit, parse

app = typer.Typer(
    help="Documents of experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@dataclass(frozen=True)
class Expected:
    """An arm, and how many of the units may be in it."""

    layer: str
    experiment: str
    unit: Unit
    slice: tuple[float, float]
    domains: tuple[str, ...] | None
    arm: str
    change: Change | None
    share: float
    """Of all units, after the last step of the ramp; domains and targeting are not counted."""
    share_now: float
    """The same at this moment."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A document, as JSON.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a document, and print what share of units each arm gets."""
    try:
        found = parse(file.read_bytes())
    except OSError as error:
        raise ExperimentsError(f"{file} cannot be read: {error.strerror}") from error
    rows = [*expected(found, time.time())]
    if as_json:
        cli.result(json.dumps({"holdout": found.holdout, "arms": [asdict(row) for row in rows]}))
        return
    table = Table("layer", "slice", "experiment", "unit", "domains", "arm", "change", "share", "now")
    for row in rows:
        table.add_row(
            row.layer,
            f"{row.slice[0]:g} to {row.slice[1]:g}",
            row.experiment,
            row.unit,
            "all" if row.domains is None else ", ".join(row.domains),
            row.arm,
            row.change or "control",
            f"{row.share:.2%}",
            f"{row.share_now:.2%}",
        )
    # Into a file or a pipe, no cell is cut.
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
    cli.result(f"held out: {found.holdout:.2%}")


def expected(experiments: Experiments, now: float) -> Iterator[Expected]:
    """The arms of a document, in its order.

    Args:
        experiments: the document.
        now: seconds since 1970.
    """
    for layer, experiment in experiments.by_name.values():
        low, high = experiment.slice
        last = experiment.ramp[-1].share if experiment.ramp else 1.0
        whole = sum(arm.weight for arm in experiment.arms.values())
        for name, arm in experiment.arms.items():
            part = (1 - experiments.holdout) * arm.weight / whole
            yield Expected(
                layer,
                experiment.name,
                experiment.unit,
                experiment.slice,
                experiment.domains,
                name,
                next(iter(arm.changes), None),
                part * (high - low) * last,
                part * (experiment.end(now) - low),
            )

"""`python -m service experiments`: documents of experiments, on the command line."""

from __future__ import annotations

import asyncio
import getpass
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
from service.experiments.document import CANARY, Change, Experiments, ExperimentsError, Unit, parse
from service.experiments.place import open_place

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
    stopped: bool
    share: float
    """Of all units, after the last step of the ramp; domains and targeting are not counted."""
    share_now: float
    """The same at this moment."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A document, as JSON.")],
    canary: Annotated[
        bool, typer.Option("--canary", help="It may have the layer of packs on trial, which tools write.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a document, and print what share of units each arm gets."""
    try:
        found = parse(file.read_bytes(), canary=canary)
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
            f"{row.change or 'control'}{', stopped' if row.stopped else ''}",
            f"{row.share:.2%}",
            f"{row.share_now:.2%}",
        )
    # Into a file or a pipe, no cell is cut.
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
    cli.result(f"held out: {found.holdout:.2%}")


@app.command()
def put(
    file: Annotated[Path, typer.Argument(help="A document, as JSON.")],
    at: Annotated[str, typer.Argument(envvar="MDCTR_EXPERIMENTS", help="A file, or redis://...")],
    why: Annotated[str, typer.Option(help="For the history.")] = "",
) -> None:
    """Check a document, and let services have it. Packs on trial stay on trial."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ExperimentsError(f"{file} cannot be read: {error.strerror}") from error
    parse(text)

    async def replace() -> None:
        place = open_place(at)
        try:
            found = await place.read()
            trials = None if found is None else json.loads(found.text).get("layers", {}).get(CANARY)
            document = json.loads(text)
            if trials is not None:
                document["layers"][CANARY] = trials
            whole = json.dumps(document, indent=2).encode()
            parse(whole, canary=True)
            await place.replace(found, whole, by=getpass.getuser(), why=why)
        finally:
            await place.close()

    asyncio.run(replace())
    cli.result(f"{at.rpartition('@')[2]} has it")


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
                arm.stopped,
                0.0 if arm.stopped else part * (high - low) * last,
                0.0 if arm.stopped else part * (experiment.end(now) - low),
            )

"""Commands of `python -m loadtest` that train models to measure them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest import bench_add_domain as adding
from loadtest import bench_csamp as aligned
from loadtest import bench_models as served
from loadtest import bench_ranks as together
from loadtest import bench_stream as streaming
from loadtest import bench_student as taught
from loadtest import bench_training as training
from service.contract import cli
from service.contract.errors import UnknownOption

app = typer.Typer()


@app.command()
def bench_training(
    data: Annotated[str, typer.Option(help="A data set: synthetic or douban.")] = "synthetic",
    *,
    backbone: Annotated[
        str | None, typer.Option(help="Of training/backbones: deepfm, or an MLP under a paradigm.")
    ] = None,
    paradigm: Annotated[str, typer.Option(help="Of training/paradigms, at its defaults.")] = "mix",
    every: Annotated[bool, typer.Option("--all", help="Every model that another library has.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for reports and prepared data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is timed.")] = 20,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a round.")] = 50,
    ranks: Annotated[
        int | None, typer.Option(min=2, help="Instead, so many processes by torchrun beside one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rows a second of the training loop, beside a bare loop, torch-rechub, FuxiCTR and DeepCTR-Torch."""
    recipe, written = training.recipe_for(data, backbone, paradigm), out / "bench-training" / "report.json"
    if ranks is not None:
        found = together.bench(recipe, written, data=out / "data", size=ranks, rounds=rounds)
        if as_json:
            cli.result(json.dumps(found))
        else:
            together.show(found, Console())
        return
    found = {}
    for each in training.recipes(data) if every else [recipe]:
        report = training.bench(each, written, data=out / "data", rounds=rounds, batches=batches)
        found[training.model_of(each)] = report
        if not as_json:
            training.show(report, Console())
    if as_json:
        cli.result(json.dumps(found if every else report))


@app.command()
def bench_stream(
    *,
    rows: Annotated[
        list[int] | None, typer.Option(min=1_000, help="Training rows; again for more. 1M, 10M and 100M.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(streaming.PARTS)}; both. The other's figures stay.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for reports and, for a while, data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is timed.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Training on rows that stay on the disk: rows/s beside rows in memory, and peak memory, by rows."""
    if strange := sorted({*(part or ())} - {*streaming.PARTS}):
        raise UnknownOption(f"no such part: {', '.join(strange)}; there are {', '.join(streaming.PARTS)}")
    size = streaming.Size(rounds=rounds)
    size = replace(size, rows=tuple(rows)) if rows else size
    report = streaming.bench(size, out / "bench-stream", Console(stderr=True), part or streaming.PARTS)
    if as_json:
        cli.result(json.dumps(report))
    else:
        streaming.show(report, Console(width=max(120, Console().width)))


@app.command()
def bench_add_domain(
    data: Annotated[str, typer.Option(help="A data set: synthetic or kuairand.")] = "synthetic",
    domain: Annotated[str | None, typer.Option(help="What to leave out; by default late, or tab-4.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, reports and prepared data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=1, help="How often the domain is added.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """From a new domain's rows to its first answer: seconds, and quality beside other ways to get there."""
    case = adding.case_for(data, domain)
    report = adding.bench(case, out / "bench-add-domain", out / "data", rounds)
    if as_json:
        cli.result(json.dumps(report))
    else:
        adding.show(report, Console(width=max(120, Console().width)))


@app.command()
def bench_models(
    *,
    runs: Annotated[Path, typer.Option(help="A comparison, whose runs of the first seed are served.")] = Path(
        "runs/results-kuairand-models"
    ),
    out: Annotated[Path, typer.Option(help="Folder for reports and prepared data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each model is timed.")] = 60,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a model in a round.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Each model over HTTP: answers beside torch's, requests/s beside the first one's, bytes of packs.

    Without the comparison, models are trained for an epoch on simulated clicks.
    """
    folder, data = out / "bench-models", out / "data"
    found = served.compared(runs) or served.quick(folder / "quick", data)
    size = served.Size(rounds=rounds, seconds=seconds)
    report = served.bench(size, found, data, folder, Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        served.show(report, Console(width=max(180, Console().width)))


@app.command()
def bench_csamp(
    *,
    data: Annotated[str, typer.Option(help=f"A data set: {', '.join(aligned.DATA)}.")] = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for runs, reports and prepared data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=2, help="How often each model is timed.")] = 60,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a model in a round.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Latency of a model of ids, of the same after CSAMP, and of one with a language model in its graph."""
    if data not in aligned.DATA:
        raise UnknownOption(f"no such data: {data}; there are {', '.join(aligned.DATA)}")
    folder, prepared = out / "bench-csamp", out / "data"
    runs = aligned.train(aligned.DATA[data], folder / f"runs-{data}", prepared)
    size = served.Size(rounds=rounds, seconds=seconds)
    report = aligned.bench(size, runs, prepared, folder, Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        aligned.show(report, Console(width=max(120, Console().width)))


@app.command()
def bench_student(
    *,
    out: Annotated[Path, typer.Option(help="Folder for runs, reports and prepared data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=2, help="How often each model is timed.")] = 60,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a model in a round.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Latency of a student, and of the same model without its teacher."""
    folder, prepared = out / "bench-student", out / "data"
    runs = taught.train(folder / "runs", prepared)
    size = served.Size(rounds=rounds, seconds=seconds)
    report = taught.bench(size, runs, prepared, folder, Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        aligned.show(report, Console(width=max(120, Console().width)))

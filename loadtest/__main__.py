"""`python -m loadtest`: the demo, and the benchmarks.

Results go to stdout, progress to stderr; bad input is one line and exit code 2.
"""

from __future__ import annotations

import faulthandler
import json
from importlib.resources import files as resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest import bench as over_http
from loadtest import bench_domains as many
from loadtest import bench_exposures as noted
from loadtest import bench_gpu as on_gpu
from loadtest import bench_served as costing
from loadtest import bench_swap as swapping
from loadtest import budgets as limits
from loadtest import capacity as loading
from loadtest import dashboards as watching
from loadtest import demo as whole
from loadtest import forms as stored
from loadtest import model_commands
from loadtest import simulate_drift as drifting
from loadtest import simulate_experiments as simulating
from loadtest import size as sizing
from loadtest.gpu_stage import Size as GpuSize
from loadtest.simulate_http import Size as Trials
from loadtest.stage import Size as Model
from service.contract import cli
from service.contract.errors import UnknownOption

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(model_commands.app)


@app.callback()
def _commands() -> None:
    """Runs the whole house."""


@app.command()
def demo(
    recipe: Annotated[str, typer.Option(help="plate, or distil: with a teacher.")] = "plate",
    data: Annotated[str, typer.Option(help="A data set: synthetic or douban.")] = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for runs and reports.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train, export, publish, serve, send every test row over HTTP, and swap a pack under traffic."""
    path = Path(str(resources("training"))) / "recipes" / f"{recipe}_{data}.yaml"
    report = whole.demo(path, out / (f"demo-{data}" if recipe == "plate" else f"demo-{recipe}-{data}"))
    if as_json:
        cli.result(json.dumps(report))
    else:
        show(report, Console())


@app.command()
def bench_gpu(
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(on_gpu.PARTS)}; by default all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, or cpu to see that it runs.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Little of everything.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The engine beside bare torch, many domains in one launch, float16, and memory, on a GPU."""
    if device not in {"auto", "cuda", "cpu"}:
        raise typer.BadParameter("auto, cuda or cpu")
    where: Any = device
    size = GpuSize.quick(where) if quick else GpuSize(device=where)
    report = on_gpu.bench(size, out / "bench-gpu", Console(stderr=True), part or ())
    if as_json:
        cli.result(json.dumps(report))
    else:
        on_gpu.show(report, Console(width=max(140, Console().width)))
    if on_gpu.failed(report):
        raise typer.Exit(1)


@app.command()
def bench_swap(
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    promotes: Annotated[int, typer.Option(min=10, help="Promotions and rollbacks in the storm.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Packs promoted and rolled back under traffic while Redis, connections and a worker are killed."""
    console = Console(stderr=True)
    report = swapping.bench(swapping.Size(promotes=promotes), out / "bench-swap", console)
    if as_json:
        cli.result(json.dumps(report))
    else:
        swapping.show(report, Console())


@app.command()
def bench_domains(
    *,
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    domains: Annotated[int, typer.Option(min=1, help="Domains in one service.")] = 10_000,
    items: Annotated[int, typer.Option(min=100, help="Rows of the item table.")] = 20_000,
    resident: Annotated[int, typer.Option(min=1, help="Megabytes of packs that may be resident.")] = 4000,
    form: Annotated[list[str] | None, typer.Option(help="dense, half, sparse or user; all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Memory, load time and latency of thousands of domains, by the form in which their packs are stored."""
    forms = tuple(form or many.FORMS)
    if strange := sorted(set(forms) - many.FORMS.keys()):
        raise UnknownOption(f"no such form: {', '.join(strange)}; there are {', '.join(many.FORMS)}")
    size = many.Size(domains=domains, items=items, resident_bytes=resident * 10**6, forms=forms)
    report = many.bench(size, out / "bench-domains", Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        many.show(report, Console(width=max(140, Console().width)))


@app.command()
def bench_exposures(
    *,
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=2, help="How often each service is measured, by size.")] = 25,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a service in a round.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Processor time of a service with the exposure log, beside one without; microseconds to find arms."""
    size = noted.Size(rounds=rounds, seconds=seconds)
    report = noted.bench(size, out / "bench-exposures", Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        noted.show(report, Console(width=max(140, Console().width)))


@app.command()
def bench_served(
    *,
    data: Annotated[
        str, typer.Option(help="synthetic, or data of training/plans/results.yaml: douban.")
    ] = costing.SYNTHETIC,
    out: Annotated[Path, typer.Option(help="Folder for reports and prepared data.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=2, help="How often each model is timed.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Microseconds of a request and of a candidate under every model of the comparison, without HTTP."""
    size, models = costing.Size(rounds=rounds), costing.recipes(data)
    report = costing.bench(size, models, out / "data", out / "bench-served", Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        costing.show(report, Console(width=max(200, Console().width)))


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is timed.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a contender in a round, by size.")] = 0.3,
    items: Annotated[int, typer.Option(min=100, help="Rows of the item table.")] = 200_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Requests/s over HTTP beside the engine alone and beside the service that one would write first."""
    size = over_http.Size(rounds=rounds, seconds=seconds, model=Model(items=items))
    report = over_http.bench(size, out / "bench", Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        over_http.show(report, Console(width=max(180, Console().width)))
    if not report["naive_valid"]:
        raise typer.Exit(1)


@app.command()
def loadtest(
    *,
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(loading.PARTS)}; the short ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    candidates: Annotated[int, typer.Option(min=1, help="Of a request.")] = 500,
    budget_ms: Annotated[float, typer.Option(min=0.1, help="What p99 may be.")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, help="Of the service.")] = 1,
    body: Annotated[str, typer.Option(help="json, or binary: the Open Inference Protocol.")] = "json",
    capacity: Annotated[float | None, typer.Option(min=1, help="If it is known; else searched.")] = None,
    overload_seconds: Annotated[float, typer.Option(min=2)] = 60.0,
    deadline_ms: Annotated[float, typer.Option(min=1, help="Of the requests of an overload.")] = 50.0,
    soak_minutes: Annotated[float, typer.Option(min=0.2)] = 10.0,
    items: Annotated[int, typer.Option(min=100, help="Rows of the item table.")] = 200_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The highest rate within a latency budget, and what happens beyond it."""
    if strange := sorted({*(part or ())} - {*loading.PARTS}):
        raise UnknownOption(f"no such part: {', '.join(strange)}; there are {', '.join(loading.PARTS)}")
    size = loading.Size(
        candidates=candidates,
        budget_ms=budget_ms,
        workers=workers,
        body=body,
        capacity_rps=capacity,
        overload_seconds=overload_seconds,
        deadline_ms=deadline_ms,
        soak_minutes=soak_minutes,
        model=Model(items=items),
    )
    report = loading.run(size, tuple(part or loading.SHORT), out / "loadtest", Console(stderr=True))
    if as_json:
        cli.result(json.dumps(report))
    else:
        loading.show(report, Console())


@app.command()
def simulate_experiments(
    *,
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    runs: Annotated[int, typer.Option(min=10, help="Experiments of each kind.")] = 1000,
    long_runs: Annotated[int, typer.Option(min=10, help="Those with an effect and many looks.")] = 500,
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(simulating.PARTS)}; by default all. Others' figures stay."),
    ] = None,
    units: Annotated[int, typer.Option(min=10_000, help="Users of a world over HTTP.")] = 60_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """How often reports and trials are wrong, on simulated users; exit code 1 where a world ends wrong."""
    if strange := sorted({*(part or ())} - {*simulating.PARTS}):
        raise UnknownOption(f"no such part: {', '.join(strange)}; there are {', '.join(simulating.PARTS)}")
    size, http = simulating.Size(runs=runs, long_runs=long_runs), Trials(units=units)
    parts = tuple(part or simulating.PARTS)
    report = simulating.simulate(size, out / "simulate-experiments", Console(stderr=True), parts, http)
    cli.result(json.dumps(report) if as_json else simulating.shown(report, parts).rstrip())
    if simulating.failed(report, parts):
        raise typer.Exit(1)


@app.command()
def simulate_drift(
    *,
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("runs"),
    silent: Annotated[int, typer.Option(min=0, help="Weeks in which nothing is wrong.")] = 4,
    planted: Annotated[int, typer.Option(min=0, help="Weeks in which something is, six times a day.")] = 1,
    days: Annotated[int, typer.Option(min=2, max=7, help="Of a week; on the first nothing is wrong.")] = 7,
    figure: Annotated[Path | None, typer.Option(help="Draw a PNG there; needs matplotlib.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Whether alarms on drift are silent and in time, in simulated weeks; exit code 1 where one is not."""
    size = drifting.Size(silent=silent, planted=planted, days=days)
    report = drifting.simulate(size, out / "simulate-drift", Console(stderr=True))
    if figure is not None:
        drifting.draw(report, figure)
    if as_json:
        cli.result(json.dumps(report))
    else:
        drifting.sheet(report).show(Console(width=max(140, Console().width)))
    if drifting.failed(report):
        raise typer.Exit(1)


@app.command()
def budgets(
    observed: Annotated[Path, typer.Argument(help="observed.json of a Locust run.")],
    file: Annotated[Path | None, typer.Option(help="A file of budgets; loadtest/budgets.yaml.")] = None,
) -> None:
    """Judge a Locust run again, under other budgets: exit code 1 if one is broken."""
    found = limits.Budgets.load(file or Path(str(resources("loadtest"))) / "budgets.yaml")
    code = limits.conclude(found, limits.Observed.load(observed), observed.parent, Console())
    if code:
        raise typer.Exit(code)


@app.command()
def dashboards(
    *,
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("dashboard.png"),
    out: Annotated[Path, typer.Option(help="Folder for logs.")] = Path("runs"),
    seconds: Annotated[float, typer.Option(min=40, help="Of traffic.")] = 150.0,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second, at first.")] = 60.0,
) -> None:
    """Draw every panel of the Grafana dashboard from a real Prometheus; exit code 1 if one has no data."""
    size = watching.Size(seconds=seconds, rate=rate)
    empty = watching.watch(size, picture, out / "dashboards", Console(stderr=True))
    cli.result(f"{picture}" + "".join(f"\nno data: {title}" for title in empty))
    if empty:
        raise typer.Exit(1)


@app.command()
def size(
    *,
    requests: Annotated[float, typer.Option(min=1, help="A second, at the busiest moment.")] = 1e6,
    candidates: Annotated[int, typer.Option(min=1, help="Of a request.")] = 200,
    zones: Annotated[int, typer.Option(min=2, help="Of which one may be lost.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Of a pod.")] = 4,
    domains: Annotated[int, typer.Option(min=1, help="With a pack each.")] = 1_000,
    form: Annotated[str, typer.Option(help="Of packs: dense, half, sparse or user.")] = "sparse",
    items: Annotated[int, typer.Option(min=1, help="Of the item table.")] = 200_000,
    versions: Annotated[int, typer.Option(min=1, help="Of each pack that Redis keeps.")] = 6,
    promotions: Annotated[float, typer.Option(min=0, help="Packs promoted in a day.")] = 1_000,
    exposures: Annotated[bool, typer.Option(help="Whether answers are logged.")] = True,
    figures: Annotated[Path, typer.Option(help="Folder of the benchmarks' reports.")] = Path("docs/figures"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Cores, pods, memory and traffic of a fleet, from what the benchmarks measured."""
    asked = sizing.Asked(
        requests, candidates, zones, workers, domains, form, items, versions, promotions, exposures
    )
    fleet = sizing.Fleet(asked, sizing.Measured.load(figures))
    if as_json:
        cli.result(json.dumps(fleet.figures()))
    else:
        fleet.sheet().show(Console(width=max(100, Console().width)))


@app.command()
def forms(
    run: Path,
    data: Annotated[Path, typer.Option(help="Folder of prepared data sets.")] = Path("runs/data"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Bytes and quality of a run's packs, by the form they are stored in."""
    report = stored.forms(run, data)
    if as_json:
        cli.result(json.dumps(report))
    else:
        stored.show(report, Console())


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    table = Table(
        "domain", "rows", "AUC, HTTP", "AUC, torch", "best possible", "log loss, HTTP", "largest difference"
    )
    for domain, found in report["domains"].items():
        best = found["auc_oracle"]
        table.add_row(
            domain,
            f"{found['rows']:,}",
            f"{found['auc_http']:.4f}",
            f"{found['auc_torch']:.4f}",
            "unknown" if best is None else f"{best:.4f}",
            f"{found['logloss_http']:.4f}",
            f"{found['max_abs_diff']:.1e}",
        )
    table.add_row(
        "macro", "", f"{report['macro_auc_http']:.4f}", "", "", f"{report['macro_logloss_http']:.4f}", ""
    )
    console.print(table)
    if taught := report["distilled"]:
        console.print(
            f"macro AUC, torch: teacher {taught['teacher']:.4f}, student {taught['student']:.4f}, "
            f"the student without its teacher {taught['without']:.4f}",
            soft_wrap=True,
        )
    share = report["parameters_of_domain"] / report["parameters"]
    sizes = ", ".join(f"{domain} {size:,}" for domain, size in report["pack_bytes"].items())
    swap = report["swap"]
    summary = f"""\
{report["requests"]:,} requests one after another: p50 {report["latency_p50_ms"]:.2f} ms, \
p99 {report["latency_p99_ms"]:.2f} ms
a domain owns {report["parameters_of_domain"]:,} of {report["parameters"]:,} parameters ({share:.2%}); \
packs in bytes: {sizes}
{swap["domain"]} was tuned anew and promoted while {swap["requests"]:,} requests flowed, of which \
{swap["failed"]} failed; {swap["promote_to_visible_ms"]:.0f} ms after the promotion scores moved by up to \
{swap["scores_moved_by"]:.3f}, to within {swap["max_abs_diff"]:.1e} of torch's
{report["seconds"]:.0f} s in all"""
    console.print(summary, soft_wrap=True)


if __name__ == "__main__":
    faulthandler.enable()  # a library that crashes leaves a trace
    cli.run(app)

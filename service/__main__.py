"""The service's command line."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from service import runtime
from service.app import create_app
from service.contract import cli
from service.contract.bundle import Bundle
from service.contract.errors import SettingsError
from service.contract.pack import version
from service.experiments import commands as experiments
from service.features import RequestEncoder
from service.resident import load, parse
from service.server import Server
from service.settings import Settings
from service.stores._open import open_store
from service.telemetry import WORKERS_FOLDER, configure_logs
from service.workers import Workers

app = typer.Typer(
    help="Serve a bundle. Settings are MDCTR_* environment variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(experiments.app, name="experiments")


@app.command()
def run() -> None:
    """Serve until told to stop."""
    settings = _settings()
    Bundle.open(settings.bundle)  # so that a wrong one is one line, and not a server's traceback
    configure_logs(settings.log_format)
    if settings.workers > 1:
        with tempfile.TemporaryDirectory(prefix="mdctr-", ignore_cleanup_errors=True) as folder:
            shelf = settings.shelf or Path(folder) / "shelf"
            counted = Path(folder) / "counted"
            counted.mkdir()
            os.environ[WORKERS_FOLDER] = str(counted)
            Workers(settings.model_copy(update={"shelf": shelf})).run()
        return
    try:
        Server(settings).run()
    except SystemExit:  # uvicorn's own, after it logged why it could not start
        raise typer.Exit(2) from None


@app.command()
def check() -> None:
    """Load the bundle as a service would, and score the golden rows of all its packs."""
    settings = _settings()
    bundle = Bundle.open(settings.bundle)
    open_store(settings.store, bundle.manifest.bundle)
    engine = runtime.open_engine(settings, bundle)
    RequestEncoder(bundle, settings.max_candidates)
    checked = [
        load(parse(data, domain, version(data), bundle), version(data), engine, settings.golden_tolerance)
        for domain, data in bundle.packs()
    ]
    cli.result(f"{bundle.manifest.bundle}: {len(checked)} packs score as they should")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document; no bundle is needed."""
    cli.result(json.dumps(create_app(_settings()).openapi(), indent=2))


@app.command()
def report(
    *,
    log: Annotated[Path, typer.Argument(help="A folder of exposures and clicks.")],
    experiment: Annotated[str, typer.Option(help="Its name.")],
    document: Annotated[
        Path | None, typer.Option(help="The document of experiments, for arms and weights.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT, the control first; instead of a document.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Parquet of `unit` and `value` from before the experiment, for CUPED.")
    ] = None,
    lift: Annotated[float, typer.Option(min=1e-6, help="The relative change it was made to find.")] = 0.02,
    alpha: Annotated[float, typer.Option(min=1e-9, max=0.5, help="Chance of a false finding.")] = 0.05,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/report-EXPERIMENT.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Markdown.")] = False,
) -> None:
    """Report on an experiment's log; exit code 1 where the arms do not have the units they should."""
    try:
        from service.experiments import page, plan  # noqa: PLC0415 - a service has no scipy and no pyarrow
        from service.experiments import report as reporting  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(f"a report needs {error.name}: pip install 'mdctr[report]'") from error
    planned = plan.planned(experiment, document, arm or [], lift, alpha)
    past = None if before is None else plan.read_before(before)
    found = reporting.report(log, experiment, planned, past)
    reporting.write(found, out or Path("runs") / f"report-{experiment}")
    cli.result(json.dumps(found) if as_json else page.markdown(found))
    if found["sample_ratio"]["mismatch"]:
        raise typer.Exit(1)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise SettingsError("; ".join(faults)) from None


if __name__ == "__main__":
    cli.run(app)

"""The service's command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service import runtime, tls
from service.app import create_app
from service.contract import cli
from service.contract.bundle import Bundle
from service.contract.errors import SettingsError
from service.contract.pack import version
from service.experiments import commands as experiments
from service.experiments.place import open_place
from service.features import RequestEncoder
from service.rescoring import Rescorer
from service.resident import load, parse
from service.server import Server
from service.settings import Settings, faults
from service.stores._open import open_store
from service.stores._protocol import PackStore
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
    # So that what is wrong is one line, and not a server's traceback.
    bundle = Bundle.open(settings.bundle)
    open_store(settings.store, bundle.manifest.bundle)
    runtime.require_exposures(settings)
    tls.context(settings)
    _require_traces(settings)
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
    runtime.require_exposures(settings)
    tls.context(settings)
    _require_traces(settings)
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


@app.command()
def guard(
    *,
    log: Annotated[Path, typer.Argument(help="A folder of exposures and clicks.")],
    experiments: Annotated[
        str, typer.Option(envvar="MDCTR_EXPERIMENTS", help="Where the document is: a file, or redis://...")
    ],
    store: Annotated[
        str, typer.Option(envvar="MDCTR_STORE", help="Where packs on trial are promoted.")
    ] = "redis://127.0.0.1:6379/0",
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
) -> None:
    """Stop arms that break a guardrail, and move packs on trial on; each event is a line of JSON."""
    try:
        from service.experiments import guard as guarding  # noqa: PLC0415 - a service has no scipy
    except ImportError as error:
        raise SettingsError(f"the guard needs {error.name}: pip install 'mdctr[report]'") from error
    place = open_place(experiments)

    def stores(bundle: str) -> PackStore:
        return open_store(store, bundle)

    def tell(event: guarding.Event) -> None:
        cli.result(guarding.line(event))
        sys.stdout.flush()  # whoever reads a pipe is to see it now

    async def look() -> None:
        try:
            if once:
                for event in await guarding.look(place, log, stores):
                    tell(event)
            else:
                configure_logs("auto")  # to stderr: stdout has events alone
                await guarding.watch(place, log, stores, every, tell)
        finally:
            await place.close()

    asyncio.run(look())


@app.command()
def replay(
    request_id: Annotated[str, typer.Argument(help="Of the answer.")],
    *,
    log: Annotated[Path, typer.Option(envvar="MDCTR_EXPOSURES", help="A folder of exposures.")],
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far off a score may be; 0 for the same bits, as on a CPU.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Score a logged request again under the versions that answered it; exit code 1 where scores differ."""
    _needs_pyarrow()
    from service import replay as replaying  # noqa: PLC0415 - a service has no pyarrow

    async def again() -> replaying.Replayed:
        async with _rescorer(_settings()) as (bundle, rescorer):
            return await replaying.replay(replaying.find(log, request_id, bundle), rescorer)

    found = asyncio.run(again())
    if as_json:
        whole = {"logged": found.logged.tolist(), "again": found.again.tolist()}
        cli.result(json.dumps({**found.summary, "ids": found.ids, **whole}))
    else:
        how = "the same, bit for bit" if found.same else f"off by {found.off:.2g} at most"
        cli.result(f"{request_id}: {len(found.ids)} scores of {found.domain} {found.pack} are {how}")
    if not found.same and found.off > tolerance:
        raise typer.Exit(1)


@app.command()
def policy(
    packs: Annotated[
        list[str], typer.Argument(metavar="DOMAIN=VERSION...", help="New packs; DOMAIN=OLD:NEW for two.")
    ],
    *,
    log: Annotated[Path, typer.Option(envvar="MDCTR_EXPOSURES", help="A folder of exposures and clicks.")],
    most: Annotated[int, typer.Option(min=1, help="Requests of a domain, the latest.")] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Markdown.")] = False,
) -> None:
    """Compare packs with those that are live, on logged traffic, before any user sees them."""
    try:
        from service import offline  # noqa: PLC0415 - a service has no scipy and no pyarrow
        from service.experiments import policy as judging  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(f"this needs {error.name}: pip install 'mdctr[report]'") from error

    async def compare() -> dict[str, Any]:
        settings = _settings()
        async with _rescorer(settings) as (bundle, rescorer):
            store = open_store(settings.store, bundle.manifest.bundle)
            try:
                pairs = await offline.versions(store, packs)
            finally:
                await store.close()
            return judging.compare(await offline.traffic(log, bundle.manifest.bundle, pairs, rescorer, most))

    found = asyncio.run(compare())
    cli.result(json.dumps(found) if as_json else judging.markdown(found).rstrip())


@asynccontextmanager
async def _rescorer(settings: Settings) -> AsyncGenerator[tuple[Bundle, Rescorer], None]:
    bundle = Bundle.open(settings.bundle)
    engine = runtime.open_engine(settings, bundle)
    store = open_store(settings.store, bundle.manifest.bundle)
    rescorer = Rescorer(bundle, engine, store, settings.golden_tolerance)
    try:
        yield bundle, rescorer
    finally:
        rescorer.close()
        await store.close()
        engine.close()


def _require_traces(settings: Settings) -> None:
    if settings.traces:
        try:
            from service import tracing  # noqa: F401, PLC0415 - a service without traces has no SDK of theirs
        except ImportError as error:
            raise SettingsError("MDCTR_TRACES needs OpenTelemetry: pip install 'mdctr[tracing]'") from error


def _needs_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise SettingsError("this needs pyarrow: pip install 'mdctr[exposures]'")


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(faults(error)) from None


if __name__ == "__main__":
    cli.run(app)

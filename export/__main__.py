"""`python -m export`: build, check, publish.

Results go to stdout, progress to stderr; bad input is one line and exit code 2.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export.bundle import build as build_bundle
from export.publish import Difference, difference
from export.publish import publish as publish_bundle
from service.contract import cli
from service.contract.bundle import Bundle
from service.stores._open import open_store
from training import checkpoint

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build(
    run: Path,
    out: Annotated[Path, typer.Option(help="Folder of bundles.")] = Path("runs/bundles"),
    data: Annotated[Path, typer.Option(help="Folder of prepared data sets.")] = Path("runs/data"),
) -> None:
    """Turn a complete run into a bundle. Prints the bundle's folder."""
    console = Console(stderr=True)
    recipe, prepared, model, metrics = checkpoint.load(run, data)
    with console.status("exporting, and comparing with torch"):
        bundle = build_bundle(recipe, prepared, model, metrics, out)
    manifest = bundle.manifest
    whole = manifest.parameters
    for what, count in (("owns", manifest.parameters_of_domain), ("tunes", manifest.parameters_tuned)):
        console.print(f"a domain {what} {count:,} of {whole:,} parameters ({count / whole:.2%})")
    for domain, pack in bundle.packs():
        console.print(f"pack {domain}: {len(pack):,} bytes")
    for parity in manifest.parity:
        console.print(f"parity {parity.engine}: {parity.max_abs_diff:.1e} over {parity.rows:,} rows")
    cli.result(str(bundle.path))


@app.command()
def check(bundle: Path) -> None:
    """Verify every file of a bundle against its manifest. Prints the bundle's id."""
    cli.result(Bundle.open(bundle).manifest.bundle)


@app.command()
def publish(
    bundle: Path,
    store: Annotated[str, typer.Option(help="redis://host:port/db, or directory:PATH.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Put a bundle's packs into a store and make them live, all at once."""
    found = asyncio.run(_publish(Bundle.open(bundle), store, dry_run))
    if as_json:
        cli.result(json.dumps([{**vars(each), "action": each.action} for each in found]))
        return
    table = Table("domain", "live", "bundle", "bytes", "would" if dry_run else "done")
    for each in found:
        table.add_row(each.domain, each.live or "-", each.bundle, f"{each.nbytes:,}", each.action)
    Console().print(table)


async def _publish(bundle: Bundle, url: str, dry_run: bool) -> list[Difference]:
    store = open_store(url, bundle.manifest.bundle)
    try:
        return await (difference if dry_run else publish_bundle)(bundle, store)
    finally:
        await store.close()


if __name__ == "__main__":
    cli.run(app)

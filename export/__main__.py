"""`python -m export`: build, check, publish, add a domain, and the life cycle of packs.

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

from export import add_domain as adding
from export import engine as engines
from export import engine_check as engine_checks
from export import items as item_tables
from export import lifecycle
from export.bundle import build as build_bundle
from export.half_graph import write as write_half
from export.lifecycle import ask, bundle_id, print_table, when
from export.publish import Difference, difference, person
from export.publish import publish as publish_bundle
from service.contract import cli, hashing
from service.contract.bundle import Bundle
from service.contract.errors import EngineError, RunError, StoreError
from service.engines._plans import FOLDER as PLANS
from service.stores._open import open_store
from service.stores._protocol import PackStore
from training import checkpoint
from training.__main__ import OVERRIDES, progress

_OWN = "the bundle's own table"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(lifecycle.app, name="packs")


@app.command()
def build(
    run: Path,
    *,
    out: Annotated[Path, typer.Option(help="Folder of bundles.")] = Path("runs/bundles"),
    data: Annotated[Path, typer.Option(help="Folder of prepared data sets.")] = Path("runs/data"),
    item_halves: Annotated[
        bool | None,
        typer.Option(
            "--item-halves/--no-item-halves",
            help="Compute in advance what depends on items alone. By default if it takes at most 2 GB.",
        ),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Round the domains' packs to float16: half of the bytes.")
    ] = False,
    many: Annotated[
        bool, typer.Option("--many", help="Also graphs that score many requests at once, for a GPU.")
    ] = False,
) -> None:
    """Turn a complete run into a bundle. Prints the bundle's folder."""
    console = Console(stderr=True)
    recipe, prepared, model, metrics = checkpoint.load(run, data)
    with console.status("exporting, and comparing with torch"):
        bundle = build_bundle(
            recipe, prepared, model, metrics, out, item_halves=item_halves, half=half, many=many
        )
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
def half_graph(bundle: Path, out: Annotated[Path, typer.Option(help="A new folder.")]) -> None:
    """Write a bundle's graph in float16, which the bundle's packs fit, for other engines. Prints its file."""
    cli.result(str(write_half(Bundle.open(bundle), out)))


@app.command()
def engine(
    bundle: Path,
    out: Annotated[
        Path | None, typer.Option(help="Folder of plans.", show_default="engines, in the bundle's")
    ] = None,
    candidates: Annotated[str, typer.Option(help="Sizes that requests are padded to.")] = ",".join(
        map(str, engines.SIZES)
    ),
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For the lean runtime of the same version, too.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="From the graph in float16.")] = False,
) -> None:
    """Build a bundle's graphs for TensorRT and this machine's GPU. Prints the folder of the plans."""
    opened = Bundle.open(bundle)
    sizes = _sizes(candidates)
    with Console(stderr=True).status("building; TensorRT times kernels, which takes minutes"):
        made = engines.build(
            opened, out or bundle / PLANS, sizes, version_compatible=version_compatible, half=half
        )
    cli.result(str(made))


@app.command()
def engine_check(
    bundle: Path,
    candidates: Annotated[str, typer.Option(help="Sizes that requests are padded to.")] = ",".join(
        map(str, engines.SIZES)
    ),
    version_compatible: Annotated[bool, typer.Option("--version-compatible")] = False,
) -> None:
    """Build a bundle's graphs for TensorRT, run them, and compare with ONNX Runtime. Keeps no plan."""
    found = engine_checks.check(
        Bundle.open(bundle), _sizes(candidates), version_compatible=version_compatible
    )
    print_table(engine_checks.HEAD, (each.cells for each in found))
    if not all(each.good for each in found):
        raise SystemExit(1)


@app.command()
def publish(
    bundle: Path,
    store: Annotated[
        str, typer.Option(envvar="MDCTR_STORE", help="redis://host:port/db, or directory:PATH.")
    ],
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


@app.command(context_settings=OVERRIDES)
def add_domain(
    context: typer.Context,
    name: str,
    *,
    data: Annotated[Path, typer.Option(help="The domain's rows, .parquet or .csv.")],
    bundle: Annotated[Path, typer.Option(help="The bundle's folder.")],
    store: Annotated[
        str | None, typer.Option(envvar="MDCTR_STORE", help="redis://host:port/db, or directory:PATH.")
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Keep the pack as this file, too.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also if the domain is live.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tune and report; publish nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tune a pack for a new domain and make it live. `--tuning.lr 1e-3` and the like change single values."""
    if store is None and not dry_run:
        raise StoreError("give a --store to publish to, or --dry-run to publish nothing")
    addition = adding.Addition(name, data, Bundle.open(bundle), context.args)
    report = adding.add(addition, None if dry_run else store, out, replace=replace, progress=progress())
    if as_json:
        cli.result(json.dumps(report))
    else:
        adding.show(report, Console())


@app.command()
def items(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder; its id will do to list or roll back.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[ITEMS]", help="The new table, .parquet or .csv.")
    ] = None,
    *,
    store: Annotated[
        str, typer.Option(envvar="MDCTR_STORE", help="redis://host:port/db, or directory:PATH.")
    ],
    add: Annotated[bool, typer.Option("--add", help="Put them on top of the live table.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the table before live again.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show which tables were live.")] = False,
    run: Annotated[str, typer.Option(help="Where it came from, for the history; by default the file.")] = "",
    by: Annotated[
        str, typer.Option(default_factory=person, show_default="this account", help="Who, for the history.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Make a new item table live, without an export."""
    if [file is not None, rollback, list_].count(True) != 1 or (add and file is None):
        raise RunError("give a file of items, or --rollback, or --list; --add goes with a file")
    if list_:
        _show_tables(ask(bundle_id(bundle), store, item_tables.history), as_json=as_json)
    elif file is None:
        moved = ask(bundle_id(bundle), store, lambda at: item_tables.rollback(at, by=by, dry_run=dry_run))
        _show_rollback(*moved, dry_run=dry_run, as_json=as_json)
    else:
        opened = Bundle.open(Path(bundle))
        columns = item_tables.read(file, opened.schema, opened.items.dtype)
        origin = run or f"{file.name} {hashing.file(file)[:8]}"

        async def replace(at: PackStore) -> item_tables.Changes:
            made = await item_tables.make(at, opened, columns, add=add)
            return await item_tables.publish(at, opened, made, run=origin, by=by, dry_run=dry_run)

        _show_changes(ask(opened.manifest.bundle, store, replace), dry_run=dry_run, as_json=as_json)


def _show_rollback(left: str | None, now: str | None, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        cli.result(json.dumps({"before": left, "after": now}))
    else:
        cli.result(f"{now or _OWN} {'would be' if dry_run else 'is'} live, instead of {left}")


def _show_changes(changes: item_tables.Changes, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        cli.result(json.dumps(vars(changes)))
        return
    if changes.before == changes.after:
        cli.result(f"{changes.after} was live already")
    else:
        live = "would be live" if dry_run else "is live"
        cli.result(f"{changes.after} {live}, instead of {changes.before or _OWN}")
    cli.result(
        f"{changes.items:,} items: {changes.added:,} added, {changes.changed:,} changed, "
        f"{changes.removed:,} removed; {changes.bytes:,} bytes, {changes.sent:,} of them sent"
    )
    shares = ((field, f"{share:.2%}") for field, share in changes.unknown.items())
    print_table(("field", "of the file's items, read as unknown"), shares)


def _show_tables(steps: list[item_tables.Step], *, as_json: bool) -> None:
    if as_json:
        cli.result(json.dumps(steps, default=vars))
        return
    rows = (
        (
            when(step.time),
            step.version or _OWN,
            "live" if step.live else "",
            step.run,
            step.by,
            None if step.items is None else f"{step.items:,}",
            None if step.bytes is None else f"{step.bytes:,}",
        )
        for step in steps
    )
    print_table(("promoted", "version", "", "run", "by", "items", "bytes"), rows)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise EngineError(f"--candidates takes numbers with commas between them, not {text!r}") from error


async def _publish(bundle: Bundle, url: str, dry_run: bool) -> list[Difference]:
    store = open_store(url, bundle.manifest.bundle)
    try:
        return await (difference(bundle, store) if dry_run else publish_bundle(bundle, store, by=person()))
    finally:
        await store.close()


if __name__ == "__main__":
    cli.run(app)

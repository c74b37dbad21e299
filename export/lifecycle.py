"""`python -m export packs`: the life cycle of packs, on the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from export import trial
from export.publish import person
from service import inspection, lifecycle
from service.contract import cli, plugins
from service.contract.bundle import MANIFEST, Bundle
from service.contract.errors import BundleError, PackError, UnknownVersion
from service.contract.manifest import Manifest
from service.contract.pack import version as version_of
from service.engines._protocol import Engine
from service.experiments.canary import HOLD
from service.experiments.named import named
from service.lifecycle import SPARED
from service.records import Change, Contents, DomainHistory, PackDifference, Put, Removed
from service.stores._open import open_store
from service.stores._protocol import PackStore

app = typer.Typer(
    help="Which packs a store has, and which are live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
T = TypeVar("T")

_Named = Annotated[str, typer.Argument(metavar="BUNDLE", help="The bundle's folder, or its id.")]
_Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
_Domains = Annotated[list[str], typer.Argument(metavar="DOMAIN...")]
_Store = Annotated[str, typer.Option(envvar="MDCTR_STORE", help="redis://host:port/db, or directory:PATH.")]
_Engine = Annotated[str, typer.Option(envvar="MDCTR_ENGINE", help="What scores golden rows.")]
_Run = Annotated[str, typer.Option(help="Why, or where the packs came from, for the history.")]
_By = Annotated[
    str, typer.Option(default_factory=person, show_default="this account", help="Who, for the history.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_(bundle: _Named, store: _Store, as_json: _Json = False) -> None:
    """What is live in every domain: since when, from where, by whom."""
    found = ask(bundle_id(bundle), store, lifecycle.overview)
    if _printed(found, as_json):
        return
    rows = (
        (line.domain, line.live, when(line.since), line.run, line.by, f"{line.bytes:,}", str(line.kept))
        for line in found
    )
    print_table(("domain", "live", "since", "run", "by", "bytes", "kept"), rows)


@app.command()
def show(
    bundle: _Named,
    domain: str,
    version: Annotated[str | None, typer.Argument(help="Show what it holds; needs the folder.")] = None,
    *,
    store: _Store,
    as_json: _Json = False,
) -> None:
    """A domain's history and the versions kept; or what one of them holds."""
    if version is not None:
        opened = Bundle.open(Path(bundle))
        holds = ask(
            opened.manifest.bundle, store, lambda at: inspection.contents(at, domain, version, opened)
        )
        if not _printed(holds, as_json):
            _show_contents(holds)
        return
    found = ask(bundle_id(bundle), store, lambda at: lifecycle.show(at, domain))
    if not _printed(found, as_json):
        _show_domain(found)


@app.command()
def put(
    bundle: _Folder,
    packs: Annotated[list[Path], typer.Argument(metavar="PACK...", help="Files; each names its domain.")],
    *,
    store: _Store,
    version: Annotated[str | None, typer.Option(help="What the one pack's content must hash to.")] = None,
    engine: _Engine = "ort",
    tolerance: Annotated[
        float, typer.Option(envvar="MDCTR_GOLDEN_TOLERANCE", help="How far golden rows may be off.")
    ] = 1e-4,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Check packs as every service will, then keep them. Nothing becomes live."""
    if version is not None and len(packs) > 1:
        raise UnknownVersion("--version is for one pack only")
    opened = Bundle.open(bundle)
    scorer = _engine(engine, opened)
    checked = []
    for path in packs:
        try:
            data = path.read_bytes()
            pack = lifecycle.check(data, bundle=opened, engine=scorer, tolerance=tolerance, version=version)
        except OSError as error:
            raise PackError(f"{path} cannot be read: {error.strerror}") from error
        except PackError as error:
            raise PackError(f"{path} is refused: {error}") from error
        checked.append((pack.domain, data))

    async def keep(at: PackStore) -> list[Put]:
        return [await lifecycle.put(at, domain, data) for domain, data in checked]

    done = [Put(domain, version_of(data), len(data)) for domain, data in checked]
    if not dry_run:
        done = ask(opened.manifest.bundle, store, keep)
    if not _printed(done, as_json):
        rows = ((each.domain, each.version, f"{each.bytes:,}") for each in done)
        print_table(("domain", "would put" if dry_run else "put", "bytes"), rows)


@app.command()
def promote(
    bundle: _Named,
    versions: Annotated[list[str], typer.Argument(metavar="DOMAIN=VERSION...")],
    *,
    store: _Store,
    run: _Run = "",
    by: _By,
    expected: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=VERSION", help="What must be live now; nothing after = for nothing."),
    ] = None,
    canary: Annotated[
        bool,
        typer.Option("--canary", help="Try them on 1 %, 5 % and 25 % of users first; see docs/canary.md."),
    ] = False,
    experiments: Annotated[
        str, typer.Option(envvar="MDCTR_EXPERIMENTS", help="With --canary: where the document is.")
    ] = "",
    hold: Annotated[
        float, typer.Option(min=1e-6, help="With --canary: hours that each of its steps lasts at least.")
    ] = HOLD / timedelta(hours=1),
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Make versions live, all in one step or none. A unique beginning of a version is enough."""
    wanted = _pairs(versions)
    if canary:
        found = ask(
            bundle_id(bundle),
            store,
            lambda at: trial.begin(
                at,
                wanted,
                bundle=bundle_id(bundle),
                where=experiments,
                by=by,
                hold=timedelta(hours=hold),
                dry_run=dry_run,
            ),
        )
        cli.result(json.dumps(found) if as_json else f"{found['name']} begins: {_tried(found)}")
        return
    before = {domain: start or None for domain, start in _pairs(expected or []).items()}
    done = ask(
        bundle_id(bundle),
        store,
        lambda at: lifecycle.promote(at, wanted, run=run, by=by, expected=before, dry_run=dry_run),
    )
    _show_changes(done, dry_run=dry_run, as_json=as_json)


def _tried(experiment: Mapping[str, Any]) -> str:
    versions = experiment["arms"]["new"]["version"]
    return ", ".join(f"{domain} {version}" for domain, version in versions.items())


@app.command()
def rollback(
    bundle: _Named,
    domains: _Domains,
    *,
    store: _Store,
    to: Annotated[str | None, typer.Option(help="A version, instead of the one before; one domain.")] = None,
    by: _By,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Make the versions before the live ones live again, in one step. Again goes one further back."""
    if to is not None and len(domains) > 1:
        raise UnknownVersion("--to is for one domain only")
    done = ask(
        bundle_id(bundle), store, lambda at: lifecycle.rollback(at, domains, to=to, by=by, dry_run=dry_run)
    )
    _show_changes(done, dry_run=dry_run, as_json=as_json)


@app.command()
def diff(
    bundle: _Folder,
    domain: str,
    a: Annotated[str | None, typer.Argument(help="By default where a rollback would go.")] = None,
    b: Annotated[str | None, typer.Argument(help="By default the live version.")] = None,
    *,
    store: _Store,
    engine: _Engine = "ort",
    as_json: _Json = False,
) -> None:
    """How two versions of a domain differ, and how far apart they score."""
    opened = Bundle.open(bundle)
    scorer = _engine(engine, opened)
    found = ask(
        opened.manifest.bundle,
        store,
        lambda at: inspection.difference(at, domain, a, b, bundle=opened, engine=scorer),
    )
    if not _printed(found, as_json):
        _show_difference(found)


@app.command()
def retire(
    bundle: _Named,
    domains: _Domains,
    *,
    store: _Store,
    run: _Run = "",
    by: _By,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Let nothing be live in domains, in one step. Their packs stay until `gc` takes them."""
    done = ask(
        bundle_id(bundle), store, lambda at: lifecycle.retire(at, domains, run=run, by=by, dry_run=dry_run)
    )
    _show_changes(done, dry_run=dry_run, as_json=as_json)


@app.command()
def gc(
    bundle: _Named,
    domains: Annotated[list[str] | None, typer.Argument(metavar="[DOMAIN]...", help="Only these.")] = None,
    *,
    store: _Store,
    keep: Annotated[int, typer.Option(min=0, help="Versions of each history that stay.")] = SPARED,
    unpromoted: Annotated[
        bool, typer.Option("--unpromoted", help="Take versions that the history does not name, too.")
    ] = False,
    experiments: Annotated[
        str, typer.Option(envvar="MDCTR_EXPERIMENTS", help="A document, whose versions stay.")
    ] = "",
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Remove packs that nothing needs. What is live always stays."""

    async def collect(at: PackStore) -> list[Removed]:
        needed = await named(experiments)
        return await lifecycle.gc(
            at,
            keep=keep,
            unpromoted=unpromoted,
            domains=domains or None,
            needed=needed,
            dry_run=dry_run,
        )

    taken = ask(bundle_id(bundle), store, collect)
    if not _printed(taken, as_json):
        rows = ((pack.domain, pack.version, f"{pack.bytes:,}") for pack in taken)
        print_table(("domain", "would remove" if dry_run else "removed", "bytes"), rows)


def bundle_id(named: str) -> str:
    """A bundle's id, from its folder or as it stands.

    Raises:
        BundleError: it is neither.
    """
    folder = Path(named)
    if folder.is_dir():
        return Manifest.load(folder / MANIFEST).bundle
    if "/" in named or "-" not in named:
        raise BundleError(f"{named} is neither a bundle's folder nor a bundle's id (NAME-HASH)")
    return named


def _engine(name: str, bundle: Bundle) -> Engine:
    engine: Engine = plugins.load("service.engines", name).open(bundle, 1)
    return engine


def ask(bundle: str, url: str, question: Callable[[PackStore], Awaitable[T]]) -> T:
    """Open a store for the time of one question."""

    async def ask() -> T:
        store = open_store(url, bundle)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(ask())


def _pairs(given: Iterable[str]) -> dict[str, str]:
    """`DOMAIN=VERSION`, each domain once.

    Raises:
        UnknownVersion: it is not that.
    """
    pairs: dict[str, str] = {}
    for text in given:
        domain, equals, start = text.partition("=")
        if not equals or not domain:
            raise UnknownVersion(f"{text!r} is not DOMAIN=VERSION")
        if domain in pairs:
            raise UnknownVersion(f"{domain} stands twice")
        pairs[domain] = start
    return pairs


def _printed(found: object, as_json: bool) -> bool:
    if as_json:
        cli.result(json.dumps(found, default=vars))
    return as_json


def when(seconds: float | None) -> str | None:
    """A moment, for a table."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> None:
    """Print a table; what is None is a dash."""
    table = Table(*head)
    for row in rows:
        table.add_row(*("-" if cell is None else cell for cell in row))
    # Into a file or a pipe, no cell is cut.
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def _show_changes(changes: Sequence[Change], *, dry_run: bool, as_json: bool) -> None:
    if not _printed(changes, as_json):
        rows = (
            (each.domain, each.before, each.after, "keep" if each.before == each.after else _verb(each))
            for each in changes
        )
        print_table(("domain", "before", "after", "would" if dry_run else "done"), rows)


def _verb(change: Change) -> str:
    if change.after is None:
        return "retire"
    return "add" if change.before is None else "replace"


def _show_domain(found: DomainHistory) -> None:
    cli.result(f"{found.domain}: live {found.live or '-'}, a rollback goes to {found.previous or '-'}")
    steps = ((when(step.time), step.version or "retired", step.run, step.by) for step in found.history)
    print_table(("promoted", "version", "run", "by"), steps)
    kept = ((pack.version, f"{pack.bytes:,}", when(pack.promoted)) for pack in found.kept)
    print_table(("kept", "bytes", "last promoted"), kept)


def _show_contents(holds: Contents) -> None:
    scale, shift = holds.calibration
    cli.result(f"{holds.domain} {holds.version}: {holds.bytes:,} bytes, {holds.golden_rows} golden rows")
    cli.result(f"header: {json.dumps(holds.header, sort_keys=True)}")
    cli.result(f"calibration: {scale:.6g} * logit + {shift:.6g}")
    rows = (
        (
            each.name,
            " x ".join(map(str, each.shape)) or "one number",
            each.dtype,
            each.stored if each.rows is None else f"{each.rows} rows as {each.stored}",
            f"{each.bytes:,}",
        )
        for each in holds.tensors
    )
    print_table(("tensor", "shape", "type", "stored", "bytes"), rows)


def _show_difference(found: PackDifference) -> None:
    cli.result(f"{found.domain}: {found.b} less {found.a}")
    rows = (
        (
            each.name,
            f"{each.rows:,} of {each.of_rows:,}",
            f"{each.numbers:,} of {each.of_numbers:,}",
            f"{each.largest:.3g}",
            f"{each.rms:.3g}",
        )
        for each in found.tensors
    )
    print_table(("tensor", "rows that differ", "numbers that differ", "largest", "RMS"), rows)
    (scale, shift), golden = found.calibration, found.golden
    cli.result(f"calibration: scale {scale:+.3g}, shift {shift:+.3g}")
    cli.result(
        f"golden rows ({golden.rows}): logits differ by at most {golden.largest:.3g}, RMS {golden.rms:.3g}; "
        f"probabilities by at most {golden.probability:.3g}"
    )

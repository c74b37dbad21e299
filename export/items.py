"""Item table to store: a new table for a bundle, made and published without an export.

It is kept as an edition and its parts (`service.contract.edition`). The edition is put first, so that its
parts belong to something from the start, and promoted last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from export import halves
from export.bundle import ENGINE
from service import editions
from service.contract import plugins
from service.contract.bundle import Bundle
from service.contract.edition import MOST, Arrays, Edition, parts
from service.contract.errors import ItemsError, RunError, UnknownVersion
from service.contract.field import OOV, Column, Field
from service.contract.items import ItemTable
from service.contract.schema import FeatureSchema
from service.items import Items
from service.lifecycle import previous
from service.stores._names import ITEM_PARTS, ITEMS
from service.stores._protocol import PackStore, Version
from training.data.prepare import as_column
from training.newcomer import opened, typed

SPARED = 3
"""Editions that stay in a store: the live one, and the two that were before it."""
_TOLERANCE = 1e-4
"""Of a row's two probabilities, by fields and by item halves: what services allow unless told otherwise."""


@dataclass(frozen=True)
class Changes:
    """What publishing a table changes, or would change."""

    before: Version | None
    """What was live; None for the bundle's own table."""
    after: Version | None
    """What is live now, or would be."""
    items: int
    added: int
    changed: int
    """Items of both tables whose fields are not the same."""
    removed: int
    unknown: dict[str, float]
    """By field: the share of the file's items that read the embedding of what is unknown or missing."""
    bytes: int = 0
    """Of the table."""
    sent: int = 0
    """Of them, those that the store did not have."""


@dataclass(frozen=True)
class Step:
    """A line of the history of item tables."""

    version: Version | None
    """None for the bundle's own."""
    live: bool
    time: float
    run: str
    by: str
    items: int | None
    """None where the table is no longer kept."""
    bytes: int | None


@dataclass(frozen=True)
class Made:
    """A new table for a bundle."""

    table: ItemTable
    changes: Changes


def read(path: Path, schema: FeatureSchema, dtype: Literal["int", "str"]) -> dict[str, Column]:
    """A file's columns by `Field.key`.

    Args:
        path: Parquet or CSV, with `item.id` and any of the item's fields, under their keys or plain names.
        schema: which fields there are.
        dtype: what an item id is.

    Raises:
        RunError: it cannot be read, or has no ids, or a column that is no item's field.
    """
    frame = opened(path)
    fields = {slot.field.key: slot.field for slot in schema.scope("item")}
    fields.setdefault("item.id", Field(name="id", owner="item", kind="hashed", buckets=1, dtype=dtype))
    keys = {name: name if name in fields else f"item.{name}" for name in frame.columns}
    if strange := [name for name, key in keys.items() if key not in fields]:
        raise RunError(f"{path}: the model has no item field called {', '.join(strange)}")
    if len(set(keys.values())) < len(keys):
        raise RunError(f"{path}: a field stands twice, under its key and its name")
    if "item.id" not in keys.values() or frame.is_empty():
        raise RunError(f"{path} has no item.id" if len(frame) else f"{path} has no items")
    columns = {key: typed(frame[name], fields[key]) for name, key in keys.items()}
    ids = columns["item.id"]
    if missing := ids.null_count():
        raise RunError(f"{path}: {missing:,} items have no item.id")
    if not (ids.dtype.is_integer() if dtype == "int" else ids.dtype == pl.String):
        raise RunError(f"{path}: item.id is {ids.dtype}, but the bundle's item ids are {dtype}")
    return {key: as_column(column) for key, column in columns.items()}


async def make(store: PackStore, bundle: Bundle, columns: Mapping[str, Column], *, add: bool) -> Made:
    """A new table, compared with the one that is live.

    Args:
        store: where the live one is.
        bundle: whose schema encodes; whose own table is compared with where the store's cannot be read.
        columns: as `read` gives them.
        add: on top of the live one, instead of a table of its own.

    Raises:
        SchemaError: ids repeat, or a value does not fit its field.
        ItemsError: the live one, to which items shall be added, is damaged.
        UnknownVersion: a part of it is gone.
    """
    live = (await store.live()).get(ITEMS)
    before = bundle.items
    if live is not None:
        try:
            edition = await editions.read(store, live)
            edition.check(bundle, MOST)
            before = ItemTable.of(await editions.arrays(store, edition, bundle.items.arrays))
        except (ItemsError, UnknownVersion):
            if add:
                raise
    schema = bundle.schema
    table = before.updated(schema, columns) if add else ItemTable.encode(schema, columns)
    return Made(table, _changes(schema, live, before, table, columns))


async def publish(
    store: PackStore, bundle: Bundle, made: Made, *, run: str = "", by: str = "", dry_run: bool = False
) -> Changes:
    """Make a new table live, and return what that changed.

    Args:
        store: where to.
        bundle: that it is for.
        made: the table.
        run: where it came from, for the history.
        by: who publishes, for the history.
        dry_run: check it, and change nothing.

    Raises:
        ItemsError: every service would refuse it; nothing is published.
        Conflict: another table was promoted since this one was compared with what is live.
    """
    with _arrays(bundle, made.table) as arrays:
        edition = Edition.of(bundle, arrays)
        check(edition, arrays, bundle)
        changes = replace(made.changes, after=edition.version, bytes=edition.nbytes)
        if dry_run:
            return changes
        await store.put(ITEMS, edition.to_bytes())
        sent = await _put(store, edition, arrays)
        if changes.before != changes.after:
            expected = {ITEMS: changes.before}
            await store.promote({ITEMS: edition.version}, run=run, by=by, expected=expected)
        # Those that the store had may have been another table's, which somebody collected meanwhile.
        sent += await _put(store, edition, arrays)
    await collect(store)
    return replace(changes, sent=sent)


def check(edition: Edition, arrays: Arrays, bundle: Bundle) -> None:
    """Refuse a table that every service would refuse.

    Raises:
        ItemsError: the text says why.
    """
    edition.check(bundle, MOST)
    engine = plugins.load("service.engines", ENGINE).open(bundle, threads=1)
    try:
        made = Items.checked(edition.version, arrays, bundle)
        made.score(bundle, engine, _TOLERANCE, rows=len(made.table) + 1)
    finally:
        engine.close()


async def rollback(
    store: PackStore, *, by: str = "", dry_run: bool = False
) -> tuple[Version | None, Version | None]:
    """Make the table before the live one live again, at last the bundle's own; what was live, and what is.

    Raises:
        UnknownVersion: the bundle's own is live, or the table before is no longer kept.
        Conflict: a promotion came in between; nothing is changed.
    """
    live = (await store.live()).get(ITEMS)
    if live is None:
        raise UnknownVersion("the bundle's own item table is live; there is no earlier one")
    before = previous(await store.history(ITEMS), live)
    if not dry_run:
        await store.promote({ITEMS: before}, run=f"rollback of {live}", by=by, expected={ITEMS: live})
    return live, before


async def history(store: PackStore) -> list[Step]:
    """Which tables were live, the last one first."""
    live = (await store.live()).get(ITEMS)
    kept = await _editions(store)
    steps: list[Step] = []
    for step in reversed(await store.history(ITEMS)):
        edition = kept.get(step.version or "")
        items, nbytes = (edition.items, edition.nbytes) if edition else (None, None)
        now = not steps and step.version == live
        steps.append(Step(step.version, now, step.time, step.run, step.by, items, nbytes))
    return steps


async def collect(store: PackStore) -> None:
    """Remove tables that are neither live nor among the last ones, and parts that no table has."""
    gone = [(kept.domain, kept.version) for kept in await store.kept() if kept.domain == ITEMS]
    await store.remove(gone, SPARED)
    kept = await _editions(store)
    if None in kept.values():
        return  # of a later version of this command, perhaps: what it needs is not known
    needed = {
        part for each in kept.values() if each for array in each.arrays.values() for part in array.parts
    }
    loose = [each.version for each in await store.kept() if each.domain == ITEM_PARTS]
    await store.remove([(ITEM_PARTS, part) for part in loose if part not in needed], 0)


async def _editions(store: PackStore) -> dict[Version, Edition | None]:
    """Those that are kept; None for one that cannot be read."""
    found: dict[Version, Edition | None] = {}
    for kept in await store.kept():
        if kept.domain == ITEMS:
            try:
                found[kept.version] = await editions.read(store, kept.version)
            except ItemsError:
                found[kept.version] = None
    return found


async def _put(store: PackStore, edition: Edition, arrays: Arrays) -> int:
    """Keep those of a table's parts that are not kept; their bytes."""
    there = {kept.version for kept in await store.kept() if kept.domain == ITEM_PARTS}
    sent = 0
    for name, stored in edition.arrays.items():
        for version, part in zip(stored.parts, parts(arrays[name]), strict=True):
            if version not in there:
                there.add(await store.put(ITEM_PARTS, bytes(part)))
                sent += len(part)
    return sent


@contextmanager
def _arrays(bundle: Bundle, table: ItemTable) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """All arrays of a table, with its item halves, if the bundle has some."""
    entry = bundle.manifest.item_halves
    if entry is None:
        yield table.arrays
        return
    with tempfile.TemporaryDirectory(prefix="mdctr-items-") as folder:
        files = {name: Path(folder) / Path(file).name for name, file in entry.tables.items()}
        halves.make(bundle.path / entry.maker, table, files)
        made = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in files.values()
            if path.exists()
        }
        yield {**made, **table.arrays}


def _changes(
    schema: FeatureSchema,
    live: Version | None,
    before: ItemTable,
    table: ItemTable,
    columns: Mapping[str, Column],
) -> Changes:
    at = before.rows(table.keys)
    both = np.flatnonzero(at)
    old, new = before.inputs.take(at[both]), table.inputs.take(both + 1)
    differ = (old.ids != new.ids).any(axis=1) | (old.numbers != new.numbers).any(axis=1)
    ids = np.asarray(columns["item.id"])
    given = table.inputs.take(table.rows(ids))
    unknown = {}
    for slot in schema.scope("item"):
        if not slot.field.numeric:
            found = (given.ids[:, slot.at] == slot.offset + OOV).any(axis=1)
            unknown[slot.field.key] = float(found.mean())
    return Changes(
        before=live,
        after=None,
        items=len(table),
        added=len(table) - len(both),
        changed=int(differ.sum()),
        removed=len(before) - len(both),
        unknown=unknown,
    )

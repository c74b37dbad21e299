"""`Newcomer`: a new domain's rows, read from a file and encoded as the service would encode them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from service.contract.errors import RunError
from service.contract.field import OOV, Field
from service.contract.items import ItemTable
from service.contract.schema import FeatureSchema, Inputs
from training.data.batches import Rows
from training.data.prepare import BY_TIME, SPLITS, Split, as_column
from training.evaluation import Labelled, users

Ints = npt.NDArray[np.int64]

LEAST = 100
"""Rows. With fewer, validation and the held-out part have less than ten each."""
_OWN = ("label", "item.id", "user.id", "time")
"""Columns that are read beside the schema's."""
_LIST = "|"
"""Between the values of a list in a CSV file."""


@dataclass(frozen=True)
class Newcomer:
    """A domain's rows in three parts; `test` is held out, and only reported on."""

    parts: Mapping[Split, Labelled]
    by: Literal["time", "shuffle"]
    """How they were split."""
    strangers: float
    """Share of the rows whose item is not in the item table."""
    unseen: float
    """Share of the rows whose item's id has no place in the model's vocabulary; 0 where it has none."""
    remarks: tuple[str, ...]
    """What a user should know about the file, a line each."""


def read(path: Path, schema: FeatureSchema, items: ItemTable, seed: int) -> Newcomer:
    """Read a Parquet or CSV file of one domain's rows.

    An item's field is the file's value, else the item table's, else unknown; any other field is the file's
    value, else unknown.

    Args:
        path: the file, with columns `label`, `item.id`, the fields under their `Field.key`, and perhaps
            `time` and `user.id`.
        schema: the fields of the model.
        items: the model's items.
        seed: shuffles the rows where there is no time.

    Raises:
        RunError: the file cannot be read, or does not hold a domain's rows; the text is one line.
        SchemaError: a value does not fit its field.
    """
    frame = _rows(path)
    label, ids = _label(frame, path), _ids(frame, items, path)
    fields = {slot.field.key: slot.field for slot in schema.slots.values()}
    given = {key: typed(frame[key], field) for key, field in fields.items() if key in frame}
    user = users(frame)
    time = _time(frame["time"]) if "time" in frame else None
    at = _places(items, ids)
    request = {key: as_column(given[key]) for key in given if fields[key].scope == "request"}
    item = _items(schema, items, at, ids, {key: given[key] for key in given if fields[key].scope == "item"})
    encoded = schema.encode("request", request, frame.height)
    arrays = (encoded.ids, encoded.numbers, item.ids, item.numbers, np.zeros(frame.height, np.int64), label)
    rows = Rows(*(torch.from_numpy(np.array(array)) for array in arrays))
    places = dict(zip(SPLITS, split(frame.height, time, seed), strict=True))
    for name, place in places.items():
        if not len(place):
            raise RunError(f"{path}: too many rows of one time; split by it, there are none for {name}")
    if len(np.unique(label[places["train"]])) < 2:
        raise RunError(f"{path}: all {len(places['train']):,} training rows have the same label")
    return Newcomer(
        parts={name: Labelled(rows[torch.from_numpy(place)], user[place]) for name, place in places.items()},
        by="shuffle" if time is None else "time",
        strangers=float((at == 0).mean()),
        unseen=_unseen(schema, item),
        remarks=_remarks(frame, fields),
    )


def split(rows: int, time: npt.NDArray[np.float64] | None, seed: int) -> tuple[Ints, Ints, Ints]:
    """Positions of training, validation and held-out rows: 80, 10 and 10 %.

    By time, rows of one moment stay together, so nothing in training is as late as anything in validation.

    Args:
        rows: n.
        time: (n,), or None to shuffle.
        seed: of the shuffle.
    """
    order: npt.NDArray[np.float64] | Ints
    order = np.random.default_rng(seed).permutation(rows) if time is None else time
    valid, test = (np.sort(order)[int(part * rows)] for part in BY_TIME)
    early, late = order < valid, order >= test
    return np.flatnonzero(early), np.flatnonzero(~early & ~late), np.flatnonzero(late)


def opened(path: Path) -> pl.DataFrame:
    """A Parquet or CSV file; of the latter all is text: what a value is, the schema says.

    Raises:
        RunError: it is neither, or cannot be read.
    """
    readers = {".parquet": pl.read_parquet, ".csv": lambda file: pl.read_csv(file, infer_schema=False)}
    if path.suffix not in readers:
        raise RunError(f"{path} is neither a .parquet nor a .csv file")
    try:
        frame: pl.DataFrame = readers[path.suffix](path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return frame


def _rows(path: Path) -> pl.DataFrame:
    frame = opened(path)
    if missing := [name for name in ("label", "item.id") if name not in frame]:
        raise RunError(f"{path} has no column {' and no column '.join(missing)}")
    if nested := [name for name in _OWN if name in frame and frame[name].dtype.is_nested()]:
        raise RunError(f"{path}: {nested[0]} is {frame[nested[0]].dtype}, not one value a row")
    if frame.height < LEAST:
        raise RunError(f"{path} has {frame.height:,} rows; a domain needs {LEAST} to be tuned and judged")
    return frame


def _label(frame: pl.DataFrame, path: Path) -> npt.NDArray[np.float32]:
    label = frame["label"].cast(pl.Float64, strict=False)
    wrong = frame["label"].filter(~label.is_in([0.0, 1.0]).fill_null(value=False))
    if len(wrong):
        raise RunError(f"{path}: labels are 0 or 1, but {len(wrong):,} are not; the first is {wrong[0]!r}")
    return label.to_numpy().astype(np.float32)


def _ids(frame: pl.DataFrame, items: ItemTable, path: Path) -> pl.Series:
    kind: Literal["int", "str"] = "int" if items.dtype == "int" else "str"
    ids = typed(frame["item.id"], Field(name="id", owner="item", kind="hashed", buckets=1, dtype=kind))
    if missing := ids.null_count():
        raise RunError(f"{path}: {missing:,} rows have no item.id")
    if not (ids.dtype.is_integer() if kind == "int" else ids.dtype == pl.String):
        raise RunError(f"{path}: item.id is {ids.dtype}, but the bundle's item ids are {kind}")
    return ids


def _time(column: pl.Series) -> npt.NDArray[np.float64]:
    """Seconds, or whatever else grows with time; text is a number or an ISO 8601 date."""
    time = column
    if time.dtype == pl.String:
        time = column.cast(pl.Float64, strict=False)
        if time.null_count():
            with suppress(pl.exceptions.ComputeError):  # the first one does not look like a date
                time = column.str.to_datetime(strict=False)
    if time.dtype.is_temporal():
        time = time.to_physical()
    time = time.cast(pl.Float64, strict=False).fill_nan(None)
    if missing := time.null_count():
        raise RunError(f"{missing:,} rows have no `time` that can be read; leave the column out to shuffle")
    return time.to_numpy()


def _places(items: ItemTable, ids: pl.Series) -> npt.NDArray[np.int32]:
    return items.rows(ids.to_numpy() if ids.dtype.is_integer() else ids.to_list())


def _items(
    schema: FeatureSchema,
    items: ItemTable,
    at: npt.NDArray[np.int32],
    ids: pl.Series,
    given: Mapping[str, pl.Series],
) -> Inputs:
    """The items (n, ...), as the service makes them: nothing is known of a stranger but its id."""
    inputs = items.inputs.take(at)
    strangers = np.flatnonzero(at == 0)
    if len(strangers) and "item.id" in schema.slots:
        schema.write(inputs, "item.id", as_column(ids.gather(strangers)), strangers)
    for key, column in given.items():
        known = np.flatnonzero(column.is_not_null().to_numpy())
        if key != "item.id":
            schema.write(inputs, key, as_column(column.gather(known)), known)
    return inputs


def _unseen(schema: FeatureSchema, item: Inputs) -> float:
    slot = schema.slots.get("item.id")
    if slot is None or slot.field.kind != "vocabulary":
        return 0.0
    return float((item.ids[:, slot.at.start] == slot.offset + OOV).mean())


def typed(column: pl.Series, field: Field) -> pl.Series:
    """A column as the field wants it, where nothing is lost by that; else as it is, for the field to refuse.

    Raises:
        RunError: text that is no number stands where a number belongs.
    """
    if column.dtype in {pl.Categorical, pl.Enum}:
        column = column.cast(pl.String)
    if column.dtype == pl.Null or (column.dtype.is_nested() and not _takes_lists(field)):
        return column
    if _takes_lists(field) and column.dtype == pl.String:
        column = column.str.split(_LIST)
    if field.numeric or field.dtype == "int":
        column = _parsed(column, field)
    if column.dtype.is_float():
        column = column.fill_nan(None)  # how files of floats say that nothing is known
        if not field.numeric and (column.drop_nulls() % 1 == 0).all():
            column = column.cast(pl.Int64, strict=False)
    return column


def _parsed(column: pl.Series, field: Field) -> pl.Series:
    """Text to numbers."""
    wanted = pl.Float64 if field.numeric else pl.Int64
    dtype: pl.DataType | type[pl.DataType] = pl.List(wanted) if _takes_lists(field) else wanted
    if column.dtype not in {pl.String, pl.List(pl.String)}:
        return column
    try:
        return column.cast(dtype)
    except pl.exceptions.PolarsError:
        raise RunError(f"column {field.key} has text where a number belongs") from None


def _takes_lists(field: Field) -> bool:
    return field.multiple is not None or field.size is not None


def _remarks(frame: pl.DataFrame, fields: Mapping[str, Field]) -> tuple[str, ...]:
    remarks = []
    if missing := [key for key, field in fields.items() if field.scope == "request" and key not in frame]:
        remarks.append(f"no column {', '.join(missing)}: unknown in every row")
    if strange := [name for name in frame.columns if name not in fields and name not in _OWN]:
        remarks.append(f"ignored, as the model has no such field: {', '.join(strange)}")
    return tuple(remarks)

"""`prepare`: a source's raw rows become a folder of training, validation and test rows.

    <root>/<source>-<print>/
      train.parquet valid.parquet test.parquet   raw columns: `row` (Int64, the row's place in the source),
                                                 `domain`, `label`, `item.id`, every field under its
                                                 `Field.key`; `user.id`, `time`, `probability`,
                                                 `position`, `propensity` and `grade` where known
      items.parquet                              every item once, with `text` where there is one
      schema.json                                the `FeatureSchema`, fitted on train.parquet alone
      data.json                                  `About`: where it came from, what it holds, what was dropped
      train/                                     the training rows encoded (`training.data.blocks`), where the
                                                 source gives its rows in parts

The print covers the source, its options and its input's checksum, and the model that rows are prepared for if
there is one already, so a folder never has to be overwritten.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from rich.console import Console
from rich.table import Table

from service.contract import plugins
from service.contract.errors import RunError
from service.contract.field import Column, Scope
from service.contract.schema import FeatureSchema
from training.data.sources._protocol import Source

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_FORMAT: Literal[1] = 1
"""Rises when the same source and options come to mean other files."""
BY_TIME = (0.8, 0.9)
"""Where, of all rows in the order of time, validation and test begin."""


@runtime_checkable
class Checksummed(Protocol):
    """A source that reads a file, and can say which without loading it."""

    @property
    def checksum(self) -> str:
        """The file's SHA-256.

        Raises:
            RunError: the file is not there, or not what it should be.
        """
        ...


class Part(BaseModel):
    """A domain's rows in one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    positive: float | None
    """Share of the rows with label 1; None without rows."""


class Unseen(BaseModel):
    """What of the test rows training has not seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: float
    """Share of the test rows' distinct ids that no training row has."""
    rows: float
    """Share of the test rows that carry such an id."""


class About(BaseModel):
    """What a prepared folder holds, and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = _FORMAT
    source: str
    options: dict[str, JsonValue]
    """All of them, defaults included, but for where the files lie."""
    checksum: str | None
    """The SHA-256 of the source's file, if it reads one."""
    protocol: str
    domains: tuple[str, ...]
    """By name; a domain's position here is its number in a model."""
    parts: dict[str, dict[Split, Part]]
    """By domain, then split."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    oracle_auc: dict[str, float]
    """By domain: the AUC of the true click probability on the test rows, where it is known."""
    unseen: dict[str, Unseen]
    """By column: `item.id`, and `user.id` where there is one."""


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, open for reading."""

    path: Path
    schema: FeatureSchema
    about: About

    @classmethod
    def open(cls, path: Path) -> Prepared:
        """Open the folder that `prepare` made.

        Raises:
            RunError: there is none, or it is of another format.
            SchemaError: its schema cannot be read.
        """
        try:
            about = About.model_validate_json((path / "data.json").read_bytes())
        except OSError as error:
            raise RunError(f"{path} is not a folder of prepared data: {error}") from error
        except ValidationError as error:
            raise RunError(f"{path}/data.json: {_one_line(error)}") from error
        return cls(path, FeatureSchema.load(path / "schema.json"), about)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains' names, in a fixed order."""
        return self.about.domains

    def split(self, name: Split) -> pl.DataFrame:
        """The rows of one split, in the source's order."""
        return pl.read_parquet(self.path / f"{name}.parquet")

    @property
    def blocks(self) -> Path | None:
        """The folder of the encoded training rows; None where they fit into memory."""
        path = self.path / "train"
        return path if path.is_dir() else None

    def items(self) -> pl.DataFrame:
        """Every item once, with or without rows."""
        return pl.read_parquet(self.path / "items.parquet")


@dataclass(frozen=True)
class Fitted:
    """What a model knows already, and new rows are prepared for."""

    schema: FeatureSchema
    domains: tuple[str, ...]


def prepare(source: str, options: Mapping[str, object], root: Path, fitted: Fitted | None = None) -> Prepared:
    """Load a source, split its rows, fit the schema on the training rows, and write it all into `root`.

    The folder appears whole or not at all. If it is there already, it is opened as it is. Of a source that
    has its rows in parts, one is held in memory at a time, with the rows of validation and test.

    Args:
        source: name of a module of `training.data.sources`, or a dotted module.
        options: its options.
        root: the folder to put the prepared folder in.
        fitted: the schema to keep, with its domains, rather than to fit one.

    Raises:
        UnknownOption: there is no such source.
        RunError: an option is wrong, the data is not there, it is not what a source promises, or does not go
            with what is fitted.
        SchemaError: a value does not fit its field.
    """
    module = plugins.load("training.data.sources", source)
    try:
        chosen = cast("BaseModel", module.Options.model_validate(dict(options)))
    except ValidationError as error:
        raise RunError(f"source {source}: {_one_line(error)}") from error
    opened = cast("Source", module.open(chosen))
    checksum = opened.checksum if isinstance(opened, Checksummed) else None
    plain = chosen.model_dump(mode="json")
    known = [] if fitted is None else [fitted.schema.fingerprint, fitted.domains]
    identity = json.dumps([_FORMAT, source, plain, checksum, *known], sort_keys=True)
    path = root / f"{source}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if not path.exists():
        _write(path, opened, (source, plain, checksum), fitted)
    return Prepared.open(path)


def domain_name(raw: str) -> str:
    """A name as URLs and stores take it: `'Cooking, Food & Wine'` is `'cooking-food-wine'`.

    Raises:
        RunError: nothing of the name is left.
    """
    plain = unicodedata.normalize("NFKD", raw).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._]+", "-", plain).lstrip("-._")[:64].rstrip("-")
    if not name:
        raise RunError(f"domain {raw!r} has no letter a-z and no digit to name it by")
    return name


def columns(frame: pl.DataFrame, schema: FeatureSchema, scope: Scope) -> dict[str, Column]:
    """A scope's columns of `frame`, as `FeatureSchema.encode` takes them fastest.

    Args:
        frame: n rows with the schema's raw columns.
        schema: which fields there are.
        scope: 'request' or 'item'; the latter has `item.id`, field or not, as an `ItemTable` needs it.

    Returns:
        By `Field.key`: arrays of numbers where none is missing, (n,) or of vectors (n, size); else lists of
        n values.
    """
    keys = [slot.field.key for slot in schema.scope(scope)]
    wanted = dict.fromkeys([*keys, "item.id"] if scope == "item" else keys)
    return {key: as_column(frame[key]) for key in wanted}


def show(prepared: Prepared) -> None:
    """Print rows and positive share by domain and split, and what was dropped, to stderr."""
    about = prepared.about
    table = Table("domain", title=prepared.path.name, caption=about.protocol)
    for heading in (*SPLITS, *(["oracle AUC"] if about.oracle_auc else [])):
        table.add_column(heading, justify="right")
    for domain in about.domains:
        cells = [_cell(about.parts[domain][split]) for split in SPLITS]
        if about.oracle_auc:
            cells.append(f"{about.oracle_auc[domain]:.4f}" if domain in about.oracle_auc else "-")
        table.add_row(domain, *cells)
    console = Console(stderr=True)
    console.print(table)
    for column, unseen in about.unseen.items():
        console.print(f"{column}: {unseen.ids:.1%} new in test, on {unseen.rows:.1%} of its rows")
    for reason, rows in about.dropped.items():
        console.print(f"dropped {rows:,} rows: {reason}")


def _cell(part: Part) -> str:
    return "-" if part.positive is None else f"{part.rows:,} ({part.positive:.3f})"


def _one_line(error: ValidationError) -> str:
    places = ((".".join(map(str, found["loc"])) or "options", found["msg"]) for found in error.errors())
    return "; ".join(f"{place}: {message}" for place, message in places)


def as_column(series: pl.Series) -> Column:
    """An array of numbers where none is missing, else a list: what `FeatureSchema.encode` takes fastest."""
    if series.dtype.is_numeric() and not series.null_count():
        return series.to_numpy()
    matrix = _matrix(series)
    return series.to_list() if matrix is None else matrix


def _matrix(series: pl.Series) -> npt.NDArray[Any] | None:
    """(n, size) where each value is a list of `size` floats and none is missing."""
    lists = series.arr.to_list() if isinstance(series.dtype, pl.Array) else series
    if lists.dtype not in {pl.List(pl.Float32), pl.List(pl.Float64)}:
        return None
    sizes = lists.list.len().unique()
    if len(sizes) != 1 or not sizes[0]:
        return None
    numbers = lists.explode()
    return None if numbers.null_count() else numbers.to_numpy().reshape(-1, sizes[0])


def _write(
    path: Path, source: Source, origin: tuple[str, dict[str, JsonValue], str | None], fitted: Fitted | None
) -> None:
    from training.data.writing import Origin, write  # noqa: PLC0415 - it is made of what is here

    write(path, source, Origin(*origin), fitted)

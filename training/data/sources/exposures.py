"""The exposure log of a service: what was answered, and what of it was clicked, as data to train on.

Every item of an answer is a row, clicked or not, at its `position`, with the `propensity` that its request's
unit had of the arm that answered. The log has a request's fields where the service logs what was asked;
fields and items are declared by the source that the service's bundle was trained on. Item fields that a
request gave itself are not read.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import polars as pl
from pydantic import BaseModel, ConfigDict, field_serializer

from service.contract import exposure, hashing, plugins
from service.contract.errors import RunError
from service.contract.field import Field
from training.data.prepare import Checksummed
from training.data.sources._protocol import Interactions, Source
from training.recipe import Choice, parse

_OK = 200


class Options(BaseModel):
    """Which log, of which fields and items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    log: Path | None = None
    """A folder of exposures and clicks, `MDCTR_EXPOSURES` of the service."""
    of: Choice = Choice(name="synthetic")
    """The source that the service's bundle was trained on, with its options beside it."""
    shown: bool = False
    """Only what events say was shown; by default all that was answered."""

    @property
    def source_options(self) -> BaseModel:
        """The options of `of`, defaults included.

        Raises:
            UnknownOption: there is no such source.
            RunError: an option is wrong.
        """
        model = cast("type[BaseModel]", plugins.load("training.data.sources", self.of.name).Options)
        return parse(model, self.of.options, f"source {self.of.name}")

    @field_serializer("of")
    def _with_defaults(self, of: Choice) -> dict[str, Any]:
        return {"name": of.name, **self.source_options.model_dump(mode="json")}


def open(options: Options) -> Exposures:  # noqa: A001 - the name every source has
    """The log; nothing is read yet."""
    return Exposures(options)


class Exposures:
    """A log's rows, as the source that it is `of` declares them."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @property
    def fields(self) -> tuple[Field, ...]:
        """Those of the other source."""
        return self._source.fields

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of all files of the log and of the other source, one a line.

        Raises:
            RunError: there is no log, or the other source's data is not there.
        """
        sums = [hashing.file(path) for path in self._files]
        if isinstance(self._source, Checksummed):
            sums.append(self._source.checksum)
        return hashlib.sha256("\n".join(sums).encode()).hexdigest()

    def interactions(self) -> Interactions:
        """A row for each item of each answer, in the order of time and position.

        Raises:
            RunError: there is no log, or nothing in it says what was asked.
        """
        log = self._log
        answers = cast("pl.DataFrame", pl.from_arrow(log.exposures)).with_row_index("at")
        whole = pl.col("status").fill_null(_OK) == _OK
        counted = answers.filter(whole, pl.col("ids").list.len() > 0)
        asked = counted.filter(pl.col("request").is_not_null())
        once = asked.unique("request_id", keep="first", maintain_order=True).sort("time", maintain_order=True)
        if once.is_empty():
            raise RunError(f"nothing in {self._options.log} says what was asked, which must be logged, too")
        rows = (
            once.select("request_id", "domain", "time", "propensity", pl.col("ids").alias("item"))
            .hstack(self._asked(once["request"].to_list()))
            .with_columns(position=pl.int_ranges(0, pl.col("item").list.len()))
            .explode("item", "position")
        )
        if self._options.shown:
            rows = rows.join(_told(log.shown), on=["request_id", "item"], how="semi")
        clicks = _told(log.clicks).with_columns(clicked=True)
        # An item that stands twice in an answer was clicked where it stands first.
        first = pl.struct("request_id", "item").is_first_distinct()
        rows = rows.join(clicks, on=["request_id", "item"], how="left", maintain_order="left").with_columns(
            label=(pl.col("clicked").fill_null(False) & first).cast(pl.Int8),
        )
        ids = pl.col("item").cast(self.items().schema["item.id"], strict=False).alias("item.id")
        frame = rows.with_columns(ids).drop("item", "clicked", "request_id")
        dropped = {
            "request not logged": counted.height - asked.height,
            "answer logged again": asked.height - once.height,
        }
        how = "shown" if self._options.shown else "answered"
        return Interactions(
            frame,
            f"a service's log: {once.height:,} requests, every item that was {how}",
            {reason: count for reason, count in dropped.items() if count},
        )

    def items(self) -> pl.DataFrame:
        """The other source's.

        Raises:
            RunError: its data is not there.
        """
        return self._items

    def _asked(self, requests: list[bytes]) -> pl.DataFrame:
        """The users' and the contexts' fields, a row for each request."""
        questions = [json.loads(request) for request in requests]
        keys = [("user", "id")] + [
            (each.owner, each.name) for each in self.fields if each.owner != "item" and each.key != "user.id"
        ]
        types = {each.key: _type(each) for each in self.fields}
        series = []
        for owner, name in keys:
            values = [question[owner].get(name) for question in questions]
            dtype = types.get(f"{owner}.{name}", pl.String())
            if dtype == pl.String:  # 42 and "42" are one user
                values = [value if value is None else str(value) for value in values]
            series.append(pl.Series(f"{owner}.{name}", values, dtype, strict=False))
        return pl.DataFrame(series)

    @property
    def _files(self) -> list[Path]:
        log = self._options.log
        if log is None or not log.is_dir():
            raise RunError("there is no log of exposures" if log is None else f"{log} is not a folder")
        return sorted(path for path in log.rglob("*") if path.suffix in {".parquet", ".arrow"})

    @cached_property
    def _log(self) -> exposure.Log:
        if not self._files or self._options.log is None:
            raise RunError(f"{self._options.log} has no exposures")
        return exposure.read(self._options.log)

    @cached_property
    def _source(self) -> Source:
        module = plugins.load("training.data.sources", self._options.of.name)
        return cast("Source", module.open(self._options.source_options))

    @cached_property
    def _items(self) -> pl.DataFrame:
        return self._source.items()


def _told(events: object) -> pl.DataFrame:
    """Requests and items of events, each pair once."""
    return cast("pl.DataFrame", pl.from_arrow(events)).select("request_id", "item").unique()


def _type(field: Field) -> pl.DataType:
    """How polars holds a field's values."""
    inner: pl.DataType = pl.Int64() if field.dtype == "int" else pl.String()
    if field.kind in {"number", "vector"}:
        inner = pl.Float64()
    return pl.List(inner) if field.multiple is not None or field.kind == "vector" else inner

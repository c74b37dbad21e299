"""What every source promises, whatever data set it reads."""

import re
from typing import Any

import polars as pl
import pytest

from service.contract import plugins
from service.contract.errors import RunError
from service.contract.field import Field
from training.data.prepare import SPLITS, domain_name
from training.data.sources._protocol import Interactions, Source

NEVER = {"rating", "probability", "label", "domain", "split", "row", "time"}
"""Names that no field may have: they are, or give away, what is to be predicted, or are not features."""


class Loaded:
    """A source with its rows and items read once."""

    def __init__(self, name: str) -> None:
        self.module: Any = plugins.load("training.data.sources", name)
        self.source: Source = self.open()
        self.given: Interactions = self.source.interactions()
        self.items: pl.DataFrame = self.source.items()

    def open(self) -> Source:
        opened: Source = self.module.open(self.module.Options())
        return opened


@pytest.fixture(scope="module", params=plugins.names("training.data.sources"))
def loaded(request) -> Loaded:
    try:
        return Loaded(request.param)
    except RunError as absent:
        pytest.skip(f"no data for {request.param}: {absent}")


def test_reading_twice_gives_the_same_rows(loaded):
    again = loaded.open()
    assert again.interactions().frame.equals(loaded.given.frame)
    assert again.items().equals(loaded.items)
    assert again.interactions().protocol == loaded.given.protocol


def test_the_promised_columns_are_there(loaded):
    frame = loaded.given.frame
    assert frame.schema["domain"] == pl.String
    assert frame.schema["label"] == pl.Int8
    assert set(frame["label"].drop_nulls().unique()) <= {0, 1}
    assert "split" in frame.columns or "time" in frame.columns
    if "split" in frame.columns:
        assert set(frame["split"].unique()) == set(SPLITS)
    if "time" in frame.columns:
        assert frame.schema["time"].is_numeric()
        assert frame["time"].is_sorted()
    if "probability" in frame.columns:
        assert frame.schema["probability"] == pl.Float64
        assert frame["probability"].is_between(0, 1).all()


def holds(dtype: pl.DataType, field: Field) -> bool:
    """Whether values of a polars column are what the field takes."""
    if field.multiple is not None:
        return dtype == pl.List(pl.Int64 if field.dtype == "int" else pl.String)
    if field.kind == "vector":
        return isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric()
    if field.kind == "number":
        return dtype.is_numeric()
    return dtype.is_integer() if field.dtype == "int" else dtype == pl.String


def test_columns_hold_what_their_fields_take(loaded):
    for field in loaded.source.fields:
        frame = loaded.items if field.owner == "item" else loaded.given.frame
        assert holds(frame.schema[field.key], field), field.key


def test_no_field_gives_the_label_away(loaded):
    assert not {field.name for field in loaded.source.fields} & NEVER
    assert not [column for column in loaded.given.frame.columns if "rating" in column]
    assert not [column for column in loaded.items.columns if column.split(".")[-1] in NEVER]


def test_fields_are_not_fitted(loaded):
    for field in loaded.source.fields:
        # Values that are known without any row, as a tokenizer's are, are all there: 0, 1, 2, ..
        assert field.values == tuple(range(len(field.values)))
        assert (field.mean, field.std) == (0.0, 1.0)


def test_items_are_distinct_and_cover_the_rows(loaded):
    ids = loaded.items["item.id"]
    assert ids.null_count() == 0
    assert ids.is_unique().all()
    assert ids.dtype == loaded.given.frame.schema["item.id"]
    assert loaded.given.frame["item.id"].is_in(ids.to_list()).all()
    if "text" in loaded.items.columns:
        assert loaded.items.schema["text"] == pl.String


def test_domains_can_be_named(loaded):
    raw = loaded.given.frame["domain"].drop_nulls().unique().to_list()
    names = {domain_name(name) for name in raw}
    assert len(names) == len(raw)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) for name in names)


def test_the_protocol_is_one_printable_line(loaded):
    assert loaded.given.protocol.strip()
    assert loaded.given.protocol.isprintable()
    assert all(rows > 0 for rows in loaded.given.dropped.values())

"""Fields whose values are vectors. Expected numbers are counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contract.field import Field, FieldError
from service.contract.items import ItemTable
from service.contract.schema import FeatureSchema

MOOD = Field(name="mood", owner="user", kind="vector", size=2)
COLOUR = Field(name="colour", owner="item", kind="vocabulary", values=("blue", "red"))
PRICE = Field(name="price", owner="item", kind="number", mean=10.0, std=4.0)
TEXT = Field(name="text", owner="item", kind="vector", size=3)
AGE = Field(name="age", owner="item", kind="number")
SCHEMA = FeatureSchema(fields=(MOOD, COLOUR, PRICE, TEXT, AGE))


def test_a_vector_has_a_row_and_a_column_for_each_of_its_numbers() -> None:
    # mood 2, colour 3 (OOV, blue, red), price 1, text 3, age 1.
    assert [slot.offset for slot in SCHEMA.slots.values()] == [0, 2, 5, 6, 9]
    assert SCHEMA.rows == 10
    assert (SCHEMA.widths("request"), SCHEMA.widths("item")) == ((0, 2), (1, 5))
    assert [SCHEMA.slots[key].at for key in ("item.price", "item.text", "item.age")] == [
        slice(0, 1),
        slice(1, 4),
        slice(4, 5),
    ]


def test_vectors_stand_among_the_numbers_as_they_are_and_missing_ones_are_zeros() -> None:
    columns: dict[str, Any] = {
        "item.price": [14, None],
        "item.text": [[1, -2.5, 3], None],
        "item.age": [7, 8],
    }
    item = SCHEMA.encode("item", columns, 2)
    assert item.numbers.dtype == np.float32
    assert item.numbers.tolist() == [[1, 1, -2.5, 3, 7], [0, 0, 0, 0, 8]]
    assert item.ids.tolist() == [[2], [2]]
    assert SCHEMA.blanks["request"].numbers.tolist() == [[0, 0]]
    one = SCHEMA.blanks["request"].copy()
    assert SCHEMA.write_one(one, "user.mood", [0.5, 2]) == 0
    assert one.numbers.tolist() == [[0.5, 2]]


ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    "column",
    [
        ROWS,
        [tuple(row) for row in ROWS],
        [np.array(row) for row in ROWS],
        *(np.array(ROWS, dtype) for dtype in ("f2", "f4", "f8", "i4", "u1", object)),
    ],
    ids=lambda column: f"{type(column).__name__} of {type(column[0]).__name__}",
)
def test_lists_and_arrays_of_any_numbers_are_the_same(column: Any) -> None:
    assert TEXT.encode(column).values.tolist() == ROWS


@pytest.mark.parametrize(
    ("column", "at", "says"),
    [
        ([None, [1, 2]], 1, "expected 3 numbers, got 2"),
        ([[1, 2, 3], [1, 2, 3, 4]], 1, "expected 3 numbers, got 4"),
        ([7], 0, "expected a list, got int"),
        (["abc"], 0, "expected a list, got str"),
        ([[1, 2, 3], [1, "2", 3]], 1, "expected a number, got str"),
        ([[1, 2, None]], 0, "expected a number, got NoneType"),
        ([[1, True, 2]], 0, "expected a number, got bool"),
        ([[1, [2], 3]], 0, "expected a number, got list"),
        ([[1, 2, 3], [1, float("nan"), 3]], 1, "expected a finite number of at most 1e30"),
        ([[1, 2, float("inf")]], 0, "expected a finite number of at most 1e30"),
        ([[1, 2, 10**400]], 0, "expected a finite number of at most 1e30"),
        (np.array([[1, 2, 3], [1, np.nan, 3]], np.float32), 1, "expected a finite number of at most 1e30"),
        (np.array([[1, -2e30, 3]]), 0, "expected a finite number of at most 1e30"),
        (np.zeros((2, 4)), 0, "expected 3 numbers, got 4"),
        (np.zeros(2), 0, "expected a list, got float64"),
        (np.zeros((2, 3), bool), 0, "expected a number, got bool"),
    ],
    ids=repr,
)
def test_what_is_not_so_many_finite_numbers_is_refused_with_its_place(
    column: Any, at: int, says: str
) -> None:
    with pytest.raises(FieldError) as refused:
        TEXT.encode(column)
    assert (refused.value.field, refused.value.at, refused.value.detail) == ("item.text", at, says)


@given(st.lists(st.none() | st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3)))
def test_every_vector_becomes_float32(column: list[list[float] | None]) -> None:
    expected = [[0.0] * 3 if row is None else row for row in column]
    found = TEXT.encode(column).values
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(-1, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "vector"},
        {"kind": "vector", "size": 0},
        {"kind": "number", "size": 1},
        {"kind": "hashed", "buckets": 2, "size": 2},
        {"kind": "vector", "size": 2, "multiple": 2},
        {"kind": "vector", "size": 2, "values": ("a",)},
        {"kind": "vector", "size": 2, "min_count": 2},
        {"kind": "vector", "size": 2, "buckets": 2},
        {"kind": "vector", "size": 2, "mean": 1.0},
        {"kind": "vector", "size": 2, "std": 2.0},
    ],
    ids=str,
)
def test_a_vector_has_a_size_and_nothing_that_goes_with_other_kinds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Field(**{"name": "f", "owner": "user", **wrong})


def test_there_is_nothing_to_fit() -> None:
    assert TEXT.fit([[1, 2, 3], None]) is TEXT


def test_a_schema_is_the_same_after_json() -> None:
    plain = SCHEMA.model_dump_json(exclude_defaults=True)
    assert json.loads(plain)["fields"][0] == {"name": "mood", "owner": "user", "kind": "vector", "size": 2}
    assert FeatureSchema.model_validate_json(plain) == SCHEMA


def test_the_fingerprint_of_a_schema_without_vectors_is_what_it_was_before_there_were_any() -> None:
    """Taken from the version before: item tables, packs and runs are known by it."""
    schema = FeatureSchema(fields=(COLOUR, PRICE, Field(name="id", owner="user", kind="hashed", buckets=5)))
    assert schema.fingerprint == "240bba8dca250a6b07f88dbdfac051e2cda15e205d39a3e09fe53396130ed387"


def test_an_item_table_has_its_items_vectors() -> None:
    columns: dict[str, Any] = {"item.id": [7, 8], "item.text": np.array(ROWS, np.float32), "item.age": [1, 2]}
    table = ItemTable.encode(SCHEMA, columns)
    assert table.inputs.numbers[:, 1:4].tolist() == [[0, 0, 0], *ROWS]

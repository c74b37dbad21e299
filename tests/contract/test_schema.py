"""Fields, and how values become rows and numbers. Expected rows are counted by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contract import hashing
from service.contract.errors import SchemaError
from service.contract.field import OOV, PAD, Field, FieldError
from service.contract.schema import FeatureSchema

COLOUR = Field(name="colour", owner="user", kind="vocabulary", values=("blue", "red"))
YEAR = Field(name="year", owner="context", kind="vocabulary", dtype="int", values=(1999, 2020))
TAGS = Field(name="tags", owner="item", kind="vocabulary", multiple=2, values=("new", "old"))
CITY = Field(name="city", owner="user", kind="hashed", buckets=5)
PRICE = Field(name="price", owner="item", kind="number", mean=10.0, std=4.0)
SCHEMA = FeatureSchema(fields=(COLOUR, YEAR, TAGS, CITY, PRICE))


def test_rows_of_the_fused_table_follow_each_other():
    # colour 3 (OOV, blue, red), year 3, tags 3, city 6, price 1.
    assert [slot.offset for slot in SCHEMA.slots.values()] == [0, 3, 6, 9, 15]
    assert SCHEMA.rows == 16


def test_columns_of_a_scope_are_in_the_order_of_its_fields():
    assert SCHEMA.widths("request") == (3, 0)
    assert SCHEMA.widths("item") == (2, 1)
    assert SCHEMA.slots["user.city"].at == slice(2, 3)
    assert SCHEMA.slots["item.price"].at == slice(0, 1)


def test_encoding_gives_rows_of_the_fused_table():
    request = SCHEMA.encode(
        "request", {"user.colour": ["red", None, "green"], "context.year": [2020, 7, 1999]}, 3
    )
    assert request.ids.tolist() == [[2, 5, 9], [0, 3, 9], [0, 4, 9]]
    item = SCHEMA.encode("item", {"item.tags": [["old"], ["new", "x", "old"]], "item.price": [14, None]}, 2)
    assert item.ids.tolist() == [[8, PAD], [7, 6]]
    assert item.numbers.tolist() == [[1.0], [0.0]]


def test_a_hashed_value_is_its_bucket_after_the_oov_row():
    rows = SCHEMA.encode("request", {"user.city": ["Paris", None]}, 2).ids[:, 2].tolist()
    assert rows == [9 + 1 + hashing.bucket("Paris", 5), 9 + OOV]


def test_unknown_values_are_counted_and_missing_ones_are_not():
    inputs = SCHEMA.blanks["request"].take(np.zeros(3, np.int64))
    assert SCHEMA.write(inputs, "user.colour", ["green", None, "red"]) == 1
    assert SCHEMA.write(inputs, "user.city", ["anything"] * 3) == 0


def test_write_touches_only_the_rows_given():
    inputs = SCHEMA.blanks["request"].take(np.zeros(3, np.int64))
    SCHEMA.write(inputs, "user.colour", ["red"], np.array([1]))
    assert inputs.ids[:, 0].tolist() == [0, 2, 0]


def test_blank_rows_are_what_encoding_nothing_gives():
    for scope in ("request", "item"):
        blank, encoded = SCHEMA.blanks[scope], SCHEMA.encode(scope, {}, 2)
        assert (encoded.ids == blank.ids).all()
        assert (encoded.numbers == blank.numbers).all()


@pytest.mark.parametrize(
    ("field", "column", "at"),
    [
        (COLOUR, ["red", 3], 1),
        (COLOUR, [None, None, True], 2),
        (YEAR, [1, True], 1),
        (YEAR, [1.0], 0),
        (YEAR, np.array(["1"]), 0),
        (TAGS, [["new"], "old"], 1),
        (TAGS, [[], ["new", 4]], 1),
        (PRICE, [1, float("nan")], 1),
        (PRICE, [float("inf")], 0),
        (PRICE, [10**400], 0),
        (PRICE, [None, "7"], 1),
        (PRICE, [True], 0),
    ],
    ids=repr,
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(field, column, at):
    with pytest.raises(FieldError) as refused:
        field.encode(column)
    assert (refused.value.field, refused.value.at) == (field.key, at)


@given(st.lists(st.none() | st.integers(-(10**15), 10**15) | st.floats(-1e30, 1e30)))
def test_numbers_are_scaled_finite_float32(column):
    encoded = Field(name="x", owner="item", kind="number", mean=1.0, std=1e-12).encode(column).values
    assert encoded.dtype == np.float32
    assert np.isfinite(encoded).all()
    for value, got in zip(column, encoded, strict=True):
        expected = 0.0 if value is None else min(max((value - 1.0) / 1e-12, -1e30), 1e30)
        assert got == np.float32(expected)


def test_a_fitted_vocabulary_is_sorted_and_leaves_out_what_is_rare():
    field = Field(name="c", owner="user", kind="vocabulary", min_count=2)
    rows = ["b", "a", "b", None, "a", "z"]
    assert field.fit(rows).values == ("a", "b") == field.fit(rows[::-1]).values


def test_a_fitted_number_has_the_mean_and_deviation_of_what_is_there():
    fitted = Field(name="n", owner="item", kind="number").fit([1, None, 3])
    assert (fitted.mean, fitted.std) == (2.0, 1.0)
    assert Field(name="n", owner="item", kind="number").fit([5, 5]).std == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "hashed"},
        {"kind": "vocabulary", "buckets": 3},
        {"kind": "number", "multiple": 2},
        {"kind": "number", "std": 0.0},
        {"kind": "hashed", "buckets": 3, "min_count": 2},
        {"kind": "vocabulary", "values": ("a", "a")},
        {"kind": "vocabulary", "surprise": 1},
        {"kind": "vocabulary", "name": "Not A Name"},
    ],
    ids=str,
)
def test_a_field_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValidationError):
        Field(**{"name": "f", "owner": "user", **wrong})


@pytest.mark.parametrize("fields", [(COLOUR,), (PRICE,), (COLOUR, COLOUR, PRICE)])
def test_a_schema_has_both_scopes_and_no_field_twice(fields):
    with pytest.raises(ValidationError):
        FeatureSchema(fields=fields)


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
FIELDS = st.one_of(
    st.builds(
        Field,
        name=NAMES,
        owner=st.sampled_from(["user", "context", "item"]),
        kind=st.just("number"),
        mean=st.floats(-1e6, 1e6),
        std=st.floats(1e-3, 1e6),
    ),
    st.builds(
        Field,
        name=NAMES,
        owner=st.sampled_from(["user", "item"]),
        kind=st.just("vector"),
        size=st.integers(1, 5),
    ),
    st.builds(
        Field,
        name=NAMES,
        owner=st.sampled_from(["user", "item"]),
        kind=st.just("hashed"),
        buckets=st.integers(1, 10**9),
        multiple=st.none() | st.integers(1, 5),
    ),
    st.builds(
        Field,
        name=NAMES,
        owner=st.sampled_from(["user", "item"]),
        kind=st.just("vocabulary"),
        dtype=st.just("int"),
        values=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True).map(tuple),
    ),
    st.builds(
        Field,
        name=NAMES,
        owner=st.sampled_from(["user", "item"]),
        kind=st.just("vocabulary"),
        values=st.lists(st.text(max_size=6), unique=True, min_size=1).map(tuple),
    ),
)


@given(st.lists(FIELDS, max_size=6, unique_by=lambda field: field.key))
def test_a_schema_is_the_same_after_json(tmp_path_factory, fields):
    extra = [field for field in (COLOUR, PRICE) if field.key not in {known.key for known in fields}]
    schema = FeatureSchema(fields=(*fields, *extra))
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    schema.save(path)
    again = FeatureSchema.load(path)
    assert again == schema
    assert again.fingerprint == schema.fingerprint


def test_what_is_not_a_schema_is_refused(tmp_path):
    path = tmp_path / "schema.json"
    SCHEMA.save(path)
    for wrong in ("{", "{}", json.dumps({**json.loads(path.read_text()), "format": 2})):
        path.write_text(wrong)
        with pytest.raises(SchemaError, match="is not a schema"):
            FeatureSchema.load(path)
    with pytest.raises(SchemaError):
        FeatureSchema.load(tmp_path / "nowhere.json")


def test_another_schema_has_another_fingerprint():
    other = FeatureSchema(fields=(COLOUR.model_copy(update={"values": ("blue", "rose")}), PRICE))
    assert other.fingerprint != FeatureSchema(fields=(COLOUR, PRICE)).fingerprint


BIG = Field(name="big", owner="user", kind="vocabulary", dtype="int", values=(-(10**12), 7, 10**15))
"""Too far apart for a table, so they are searched."""
SIZE = Field(name="size", owner="user", kind="hashed", dtype="int", buckets=4)
WEIGHT = Field(name="weight", owner="user", kind="number", mean=1.5, std=0.3)
GENRES = Field(name="genres", owner="user", kind="vocabulary", multiple=2, values=("a", "b"))
MOOD = Field(name="mood", owner="user", kind="vector", size=2)
ROW = FeatureSchema(fields=(COLOUR, YEAR, BIG, CITY, SIZE, WEIGHT, MOOD, GENRES, PRICE))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1999, 2020, 7, 10**15, 10**400, "blue", "red", "a", [], ["a"], ["b", "x", "a"], {}]),
    st.lists(st.integers() | st.floats(), min_size=2, max_size=2),
    st.floats(),
    st.text(max_size=3),
)


def outcome(write, inputs, key, value):
    """How many were unknown, or where and how it does not fit."""
    try:
        return write(inputs, key, value)
    except FieldError as error:
        return error.at, error.detail


@given(st.sampled_from([slot.field.key for slot in ROW.scope("request")]), ANYTHING)
def test_one_value_is_written_as_a_column_of_one_is(key, value):
    """Against `write`, whose rows and numbers are counted by hand above."""
    column, one = ROW.blanks["request"].copy(), ROW.blanks["request"].copy()
    expected = outcome(lambda inputs, key, value: ROW.write(inputs, key, [value]), column, key, value)
    assert outcome(ROW.write_one, one, key, value) == expected
    np.testing.assert_array_equal(one.ids, column.ids)
    np.testing.assert_array_equal(one.numbers, column.numbers)

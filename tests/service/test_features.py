"""When candidates are given by their rows in the item table, and when by their fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from service.contract.bundle import Bundle
from service.contract.items import ItemTable
from service.contract.manifest import ItemHalves
from service.contract.schema import FeatureSchema
from service.features import Encoded, RequestEncoder
from tests.service import bundles

HALVES = ItemHalves(graph="rows.onnx", maker="halves.onnx", tables={})


@pytest.fixture
def with_halves(bundle: Bundle) -> Bundle:
    """As the encoder sees it: whether there are any is all it looks at."""
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"item_halves": HALVES}))


def encode(bundle: Bundle, ids: list[Any], **items: list[Any]) -> Encoded:
    return RequestEncoder(bundle, 100).encode({"age": 40.0}, {"hour": 3}, ids, items)


def test_known_items_are_rows(with_halves: Bundle) -> None:
    encoded = encode(with_halves, [12, 10, 12])
    assert set(encoded.inputs) == {"request.ids", "request.numbers", "item.rows"}
    rows = encoded.inputs["item.rows"]
    assert rows.dtype == np.int32
    assert rows.tolist() == [3, 1, 3]
    assert not any(encoded.unknown.values())


def test_the_request_is_the_same_however_items_are_given(bundle: Bundle, with_halves: Bundle) -> None:
    fields, rows = encode(bundle, [10, 13]).inputs, encode(with_halves, [10, 13]).inputs
    assert set(fields) == {"request.ids", "request.numbers", "item.ids", "item.numbers"}
    for name in ("request.ids", "request.numbers"):
        np.testing.assert_array_equal(fields[name], rows[name])
    taken = with_halves.items.inputs.take(rows["item.rows"])
    np.testing.assert_array_equal(taken.ids, fields["item.ids"])
    np.testing.assert_array_equal(taken.numbers, fields["item.numbers"])


@pytest.mark.parametrize(
    ("ids", "items"),
    [([10, 11], {"price": [4.0, None]}), ([10, 11], {"price": [None, None]}), ([10, 99], {}), ([7, 10], {})],
    ids=["a field", "nulls", "an id that has an embedding and no row", "an id that has neither"],
)
def test_all_others_are_fields(bundle: Bundle, with_halves: Bundle, ids: list[Any], items: Any) -> None:
    expected, found = encode(bundle, ids, **items), encode(with_halves, ids, **items)
    assert found.unknown == expected.unknown
    assert found.inputs.keys() == expected.inputs.keys()
    for name, array in expected.inputs.items():
        np.testing.assert_array_equal(found.inputs[name], array)


def test_an_unknown_id_is_row_0_where_no_field_is_the_id(with_halves: Bundle) -> None:
    fields = tuple(field for field in bundles.SCHEMA.fields if field.key != "item.id")
    schema = FeatureSchema(fields=fields)
    items = ItemTable.encode(schema, bundles.ITEMS)
    encoded = encode(dataclasses.replace(with_halves, schema=schema, items=items), [7, 11, 8])
    assert encoded.inputs["item.rows"].tolist() == [0, 2, 0]
    assert encoded.unknown["item.id"] == 2


@pytest.mark.parametrize("ids", [[12, 10, 12], [2**31, 99], np.array([12, 10], np.int32)], ids=str)
def test_ids_are_kept_as_they_were_looked_up(bundle: Bundle, ids: Any) -> None:
    numbers = encode(bundle, ids).numbers
    assert numbers is not None
    assert numbers.dtype == np.int64
    assert numbers.tolist() == list(ids)


def test_an_id_that_no_int64_can_be_is_unknown_and_no_number(bundle: Bundle) -> None:
    encoded = encode(bundle, [10, 2**80])
    assert encoded.numbers is None
    assert encoded.unknown["item.id"] >= 1

"""`ItemTable`: rows by id. Expected rows come from `FeatureSchema.encode`, tested on its own."""

from typing import Any

import numpy as np
import pytest

from service.contract.errors import BundleError, SchemaError
from service.contract.field import Field
from service.contract.items import ItemTable
from service.contract.schema import FeatureSchema

SCHEMA = FeatureSchema(
    fields=(
        Field(name="age", owner="user", kind="number"),
        Field(name="id", owner="item", kind="hashed", dtype="str", buckets=100),
        Field(name="price", owner="item", kind="number", mean=1.0),
    )
)
COLUMNS: dict[str, list[Any]] = {"item.id": ["b", "a", "é"], "item.price": [3.0, None, 5.0]}


def test_row_0_is_blank_and_the_items_follow_in_their_order():
    table = ItemTable.encode(SCHEMA, COLUMNS)
    assert len(table) == 3
    assert table.rows(["a", "nowhere", "é", "a"]).tolist() == [2, 0, 3, 2]
    assert (table.inputs.ids[:1] == SCHEMA.blanks["item"].ids).all()
    assert (table.inputs.ids[1:] == SCHEMA.encode("item", COLUMNS, 3).ids).all()
    assert table.inputs.numbers[:, 0].tolist() == [0.0, 2.0, 0.0, 4.0]


@pytest.mark.parametrize(("ids", "dtype"), [(["b", "a", "é"], "str"), ([5, -7, 2**62], "int")])
def test_a_table_is_the_same_after_it_was_saved(tmp_path, ids, dtype):
    fields = (*SCHEMA.fields[::2], Field(name="id", owner="item", kind="hashed", dtype=dtype, buckets=9))
    table = ItemTable.encode(FeatureSchema(fields=fields), {**COLUMNS, "item.id": ids})
    table.save(tmp_path / "items")
    again = ItemTable.load(tmp_path / "items")
    assert again.dtype == dtype
    assert again.keys.tolist() == ids
    assert again.rows(ids[::-1]).tolist() == [3, 2, 1]
    assert (again.inputs.ids == table.inputs.ids).all()
    assert (again.inputs.numbers == table.inputs.numbers).all()


def test_ids_that_repeat_are_refused():
    with pytest.raises(SchemaError, match="repeat"):
        ItemTable.encode(SCHEMA, {"item.id": ["a", "a"]})


def test_a_damaged_table_is_refused(tmp_path):
    folder = tmp_path / "items"
    ItemTable.encode(SCHEMA, COLUMNS).save(folder)
    np.save(folder / "id.npy", np.array(["a"]))
    with pytest.raises(BundleError, match="not one more"):
        ItemTable.load(folder)
    (folder / "ids.npy").write_bytes(b"no array")
    with pytest.raises(BundleError, match="not an item table"):
        ItemTable.load(folder)
    (folder / "ids.npy").unlink()
    with pytest.raises(BundleError, match="not an item table"):
        ItemTable.load(folder)


def test_a_table_of_pickles_is_refused(tmp_path):
    folder = tmp_path / "items"
    ItemTable.encode(SCHEMA, COLUMNS).save(folder)
    np.save(folder / "id.npy", np.array([{"code": "runs"}], object), allow_pickle=True)
    with pytest.raises(BundleError):
        ItemTable.load(folder)

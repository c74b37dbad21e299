from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
import torch

from service.contract.errors import MdctrError, RunError
from service.contract.field import Field, FieldError
from service.contract.items import ItemTable
from service.contract.schema import FeatureSchema
from training import newcomer
from training.newcomer import Newcomer, split

SCHEMA = FeatureSchema(
    fields=(
        Field(name="age", owner="user", kind="vocabulary", values=("old", "young")),
        Field(name="history", owner="user", kind="vocabulary", dtype="int", values=(1, 2, 3), multiple=2),
        Field(name="hour", owner="context", kind="vocabulary", dtype="int", values=(7, 8)),
        Field(name="spent", owner="user", kind="number", mean=1.0, std=2.0),
        Field(name="id", owner="item", kind="vocabulary", dtype="int", values=(10, 11, 99)),
        Field(name="brand", owner="item", kind="vocabulary", values=("a", "b")),
        Field(name="price", owner="item", kind="number"),
    )
)
ITEMS = ItemTable.encode(
    SCHEMA, {"item.id": [10, 11], "item.brand": ["a", "b"], "item.price": np.array([0.5, 1.5])}
)
N = 120
OWNERS: tuple[Literal["user"], Literal["item"]] = ("user", "item")


def frame(**changes: Any) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "label": [at % 2 for at in range(N)],
        "item.id": [10, 11, 99] * 40,
        "user.age": ["old", "young", None] * 40,
        "user.history": [[1, 2], [3], []] * 40,
        "context.hour": [7, 8, 9] * 40,
        "user.spent": [1.0, 3.0, None] * 40,
        "time": list(range(N)),
    }
    return pl.DataFrame({name: value for name, value in (columns | changes).items() if value is not None})


def read(path: Path, given: pl.DataFrame, seed: int = 0) -> Newcomer:
    given.write_parquet(path / "rows.parquet")
    return newcomer.read(path / "rows.parquet", SCHEMA, ITEMS, seed)


def slot(key: str) -> int:
    return SCHEMA.slots[key].offset


def test_fields_are_encoded_as_a_request_would_be_and_items_as_the_table_has_them(tmp_path: Path) -> None:
    rows = read(tmp_path, frame()).parts["train"].rows[:3]
    age, history, hour = (slot(key) for key in ("user.age", "user.history", "context.hour"))
    assert rows.request_ids.tolist() == [
        [age + 1, history + 1, history + 2, hour + 1],
        [age + 2, history + 3, -1, hour + 2],
        [age, -1, -1, hour],
    ]
    assert rows.request_numbers[:, 0].tolist() == [0.0, 1.0, 0.0]
    item, brand = slot("item.id"), slot("item.brand")
    # 99 is not in the table: nothing is known but the id, which the model has an embedding of.
    assert rows.item_ids.tolist() == [[item + 1, brand + 1], [item + 2, brand + 2], [item + 3, brand]]
    assert rows.item_numbers[:, 0].tolist() == [0.5, 1.5, 0.0]
    assert rows.label.tolist() == [0.0, 1.0, 0.0]


def test_the_files_item_fields_come_before_the_tables_and_a_missing_one_does_not(tmp_path: Path) -> None:
    found = read(tmp_path, frame(**{"item.brand": ["b", None, "b"] * 40}))
    brand = slot("item.brand")
    rows = found.parts["train"].rows[:3]
    assert rows.item_ids[:, 1].tolist() == [brand + 2, brand + 2, brand + 2]
    assert rows.item_numbers[:, 0].tolist() == [0.5, 1.5, 0.0]  # the table's
    assert found.strangers == pytest.approx(1 / 3)
    assert found.unseen == 0
    strange = read(tmp_path, frame(**{"item.id": [10, 11, 12, 99] * 30}))
    assert (strange.strangers, strange.unseen) == (0.5, 0.25)


def test_csv_and_parquet_and_other_types_of_the_same_values_give_the_same_rows(tmp_path: Path) -> None:
    expected = read(tmp_path, frame()).parts["train"].rows
    lists = ["1|2", "3", None] * 40
    frame(**{"user.history": lists}).write_csv(tmp_path / "rows.csv")
    others = (
        newcomer.read(tmp_path / "rows.csv", SCHEMA, ITEMS, 0),
        read(
            tmp_path,
            frame().with_columns(
                pl.col("user.age").cast(pl.Categorical),
                pl.col("context.hour").cast(pl.Float64),
                pl.col("item.id").cast(pl.UInt16),
                pl.col("user.spent").fill_null(float("nan")),
                pl.col("label").cast(pl.Boolean),
                pl.from_epoch("time"),
            ),
        ),
    )
    for other in others:
        rows = other.parts["train"].rows
        for one, two in zip((*expected.arrays, expected.label), (*rows.arrays, rows.label), strict=True):
            assert torch.equal(one, two)


def test_vectors_are_lists_of_numbers_in_parquet_and_text_in_csv(tmp_path: Path) -> None:
    fields = (*SCHEMA.fields, *(Field(name="text", owner=owner, kind="vector", size=2) for owner in OWNERS))
    schema = FeatureSchema(fields=fields)
    items = ItemTable.encode(schema, {"item.id": [10, 11], "item.text": [[7.0, 8.0], [9.0, 10.0]]})
    texts = {"user.text": [[1.0, 2.5], None, [3.0, -4.0]] * 40, "item.text": [None, [5.0, 6.0], None] * 40}
    frame(**texts).write_parquet(tmp_path / "rows.parquet")
    csv = {name: pl.Series(rows).cast(pl.List(pl.String)).list.join("|") for name, rows in texts.items()}
    frame(**csv, **{"user.history": ["1|2", "3", None] * 40}).write_csv(tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        rows = newcomer.read(tmp_path / name, schema, items, 0).parts["train"].rows[:3]
        assert rows.request_numbers[:, 1:].tolist() == [[1, 2.5], [0, 0], [3, -4]]
        # The table's, the file's, and none: 99 is not in the table.
        assert rows.item_numbers[:, 1:].tolist() == [[7, 8], [5, 6], [0, 0]]


def test_split_by_time_keeps_moments_together_and_order_does_not_matter() -> None:
    time = np.repeat(np.arange(20.0), 10)
    train, valid, test = split(200, time, 0)
    assert (len(train), len(valid), len(test)) == (160, 20, 20)
    assert time[train].max() < time[valid].min()
    assert time[valid].max() < time[test].min()
    order = np.random.default_rng(0).permutation(200)
    assert set(order[split(200, time[order], 0)[2]]) == set(test)


def test_without_time_rows_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    first, again, other = (split(200, None, seed) for seed in (3, 3, 4))
    assert [len(part) for part in first] == [160, 20, 20]
    assert sorted(np.concatenate(first)) == list(range(200))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert set(first[0]) != set(other[0])
    assert read(tmp_path, frame(time=None)).by == "shuffle"
    assert read(tmp_path, frame()).by == "time"


def test_missing_columns_are_unknown_and_strange_ones_ignored_each_in_a_line(tmp_path: Path) -> None:
    found = read(tmp_path, frame(**{"user.age": None, "price": [1.0] * N, "split": ["x"] * N}))
    assert found.remarks == (
        "no column user.age: unknown in every row",
        "ignored, as the model has no such field: price, split",
    )
    assert (found.parts["train"].rows.request_ids[:, 0] == slot("user.age")).all()
    assert read(tmp_path, frame()).remarks == ()


def test_users_are_told_apart_by_their_id(tmp_path: Path) -> None:
    found = read(tmp_path, frame(**{"user.id": [None, "a", "b"] * 40})).parts["train"]
    assert found.user[:3].tolist() == [-1, 0, 1]
    assert (read(tmp_path, frame()).parts["train"].user == -1).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": None}, "no column label"),
        ({"item.id": None}, "no column item.id"),
        ({"label": [2, *[0, 1] * 59, 0]}, "1 are not; the first is 2"),
        ({"label": [None, *[0, 1] * 59, 0]}, "labels are 0 or 1"),
        ({"label": [0] * N}, "the same label"),
        ({"item.id": ["x", "y", "z"] * 40}, "item.id has text where a number belongs"),
        ({"item.id": [10, None, 11] * 40}, "40 rows have no item.id"),
        ({"time": [1] * N}, "none for train"),
        ({"time": [None, *range(1, N)]}, "1 rows have no `time`"),
        ({"time": ["soon"] * N}, "120 rows have no `time`"),
        ({"time": [[1]] * N}, r"time is List\(Int64\), not one value"),
        ({"label": [[1]] * N}, r"label is List\(Int64\), not one value"),
        ({"user.spent": ["much"] * N}, "user.spent has text"),
    ],
)
def test_what_is_no_domains_rows_is_refused_in_a_line(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    given = frame(**dict.fromkeys(changes)).with_columns(
        **{name: pl.Series(value) for name, value in changes.items() if value is not None}
    )
    with pytest.raises(RunError, match=says) as caught:
        read(tmp_path, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[True, False] * 60, [0.5, 1.5] * 60, [1, 2] * 60])
def test_ids_of_another_type_than_the_bundles_are_refused(ids: list[object], tmp_path: Path) -> None:
    """Where ids are text, and none of the model's fields."""
    schema = FeatureSchema(fields=tuple(field for field in SCHEMA.fields if field.key != "item.id"))
    items = ItemTable.encode(schema, {"item.id": ["x", "y"]})
    frame(**{"item.id": ids}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RunError, match="but the bundle's item ids are str"):
        newcomer.read(tmp_path / "rows.parquet", schema, items, 0)


def test_moments_of_any_kind_split(tmp_path: Path) -> None:
    minutes = [f"{at // 60:02d}:{at % 60:02d}:00" for at in range(N)]
    expected = read(tmp_path, frame()).parts["test"].rows
    for given in (
        pl.Series([f"2022-05-01T{each}Z" for each in minutes]),
        pl.Series([f"2022-05-01 {each}" for each in minutes]).str.to_datetime(),
        pl.Series(minutes).str.to_time(),
        pl.Series(range(N)).cast(pl.Duration),
    ):
        rows = read(tmp_path, frame().with_columns(time=given)).parts["test"].rows
        assert torch.equal(rows.item_ids, expected.item_ids)
        assert torch.equal(rows.label, expected.label)


def test_values_of_a_wrong_type_too_few_rows_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="expected str, got int"):
        read(tmp_path, frame(**{"user.age": [1] * N}))
    with pytest.raises(RunError, match="99 rows"):
        read(tmp_path, frame()[:99])
    for name in ("rows.txt", "nothing.parquet", "nothing.csv"):
        with pytest.raises(MdctrError, match=name):
            newcomer.read(tmp_path / name, SCHEMA, ITEMS, 0)

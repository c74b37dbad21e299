"""Vectors of new texts, on the axes that prepared data has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from service.contract.errors import RunError
from training.__main__ import app
from training.data.prepare import Prepared, prepare
from training.vectors import described

SMALL = {"name": "synthetic", "domains": {"feed": 400, "new": 100}, "users": 30, "items": 40}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return prepare("text_vectors", {"of": SMALL, "size": 6}, folder / "data")


@pytest.fixture(autouse=True)
def cache(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(data.path.parent.parent / "cache"))


def test_a_new_item_stands_where_a_known_one_of_the_same_words_does(data: Prepared) -> None:
    known = data.items().head(5)
    new = pl.DataFrame({"item.id": ["a", "b", "c", "d", "e"], "text": known["text"]})
    new = new.with_columns(text=pl.when(pl.col("item.id") == "c").then(None).otherwise("text"))
    found = described(new, data)
    assert found.columns == ["item.id", "item.text"]
    assert found["item.text"].is_null().to_list() == [False, False, True, False, False]
    at = [0, 1, 3, 4]
    expected = np.array(known["item.text"].to_list())[at]
    np.testing.assert_allclose(np.array(found["item.text"][at].to_list()), expected, atol=1e-5)


def test_other_words_have_other_vectors_of_about_the_same_length(data: Prepared) -> None:
    new = pl.DataFrame({"item.id": ["a", "b"], "text": ["nothing like it", "a lamp of brass"]})
    first, second = np.array(described(new, data)["item.text"].to_list())
    assert np.abs(first - second).max() > 0.01
    assert np.linalg.norm(first) < 100


def test_texts_that_changed_are_an_error(data: Prepared, tmp_path: Path) -> None:
    moved = tmp_path / data.path.name
    moved.mkdir()
    for file in data.path.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    items = data.items()
    items.with_columns(text=items["text"].reverse()).write_parquet(moved / "items.parquet")
    new = pl.DataFrame({"item.id": ["a"], "text": ["a lamp"]})
    with pytest.raises(RunError, match="cannot be found again"):
        described(new, Prepared.open(moved))


def test_what_has_no_words_or_no_axes_is_an_error(data: Prepared, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no words"):
        described(pl.DataFrame({"item.id": ["a", "b"]}), data)
    plain = prepare("synthetic", {key: SMALL[key] for key in SMALL if key != "name"}, tmp_path)
    with pytest.raises(RunError, match="not of the source text_vectors"):
        described(pl.DataFrame({"item.id": ["a"], "text": ["a lamp"]}), plain)


def test_the_command_writes_what_an_item_table_is_made_of(data: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item.id,text\na,a lamp of brass\n")
    out = tmp_path / "new.parquet"
    arguments = ["vectors", str(tmp_path / "new.csv"), "--prepared", str(data.path), "--out", str(out)]
    app(arguments, standalone_mode=False)
    made = pl.read_parquet(out)
    assert made["item.id"].to_list() == ["a"]
    assert made["item.text"].list.len().to_list() == [6]
    arguments[1] = str(tmp_path / "none.parquet")
    with pytest.raises(RunError, match="cannot read"):
        app(arguments, standalone_mode=False)

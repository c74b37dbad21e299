"""A source whose items have vectors of their texts."""

import numpy as np
import polars as pl
import pytest

from service.contract.errors import RunError
from training import text
from training.data.prepare import columns, prepare
from training.data.sources import synthetic, text_vectors

SMALL = {"domains": {"feed": 400, "new": 100}, "users": 30, "items": 40}


def options(cache, **more: object) -> dict[str, object]:
    return {"of": {"name": "synthetic", **SMALL}, "cache": cache, "size": 6, **more}


def source(cache, **more: object) -> text_vectors.TextVectors:
    return text_vectors.open(text_vectors.Options.model_validate(options(cache, **more)))


def test_items_have_their_texts_vectors(tmp_path):
    wrapped = synthetic.open(synthetic.Options.model_validate(SMALL))
    some = source(tmp_path)
    items = some.items()
    assert items.drop("item.text").equals(wrapped.items())
    assert some.fields[:-1] == wrapped.fields
    assert some.interactions().frame.equals(wrapped.interactions().frame)
    (model,) = tmp_path.glob("tiny-*")
    known = wrapped.items()["text"].unique(maintain_order=True).to_list()
    expected = text.vectors(model, known, 6)
    at = [known.index(words) for words in items["text"]]
    np.testing.assert_array_equal(np.array(items["item.text"].to_list(), np.float32), expected[at])


class Bare:
    """The simulator, with words for some of its items only."""

    fields = synthetic.Synthetic.fields

    def __init__(self) -> None:
        self._whole = synthetic.Synthetic(synthetic.Options.model_validate(SMALL))
        self.interactions = self._whole.interactions

    def items(self) -> pl.DataFrame:
        known = pl.int_range(pl.len()) % 3 > 0
        return self._whole.items().with_columns(pl.when(known).then("text").alias("text")).drop("name")


def test_an_item_without_words_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "open", lambda _: Bare())
    vectors = source(tmp_path).items()["item.text"]
    assert vectors.is_null().to_list() == [at % 3 == 0 for at in range(40)]


def test_prepared_rows_encode_them(tmp_path):
    made = prepare("text_vectors", options(tmp_path / "cache"), tmp_path / "runs")
    train = made.split("train")
    inputs = made.schema.encode("item", columns(train, made.schema, "item"), train.height)
    slot = made.schema.slots["item.text"]
    of = dict(made.items().select("item.id", "item.text").iter_rows())
    expected = np.array([of[item] for item in train["item.id"]], np.float32)
    np.testing.assert_allclose(inputs.numbers[:, slot.at], expected, rtol=1e-6)


def test_more_numbers_than_the_model_has_are_an_error(tmp_path):
    with pytest.raises(RunError, match="principal axes"):
        source(tmp_path, size=65).items()

"""A source whose items have their texts' tokens. Expected tokens are those of the library `tokenizers`."""

from pathlib import Path

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from service.contract.field import PAD
from training.data.batches import Rows
from training.data.prepare import prepare
from training.data.sources import synthetic, text_tokens

SMALL = {"domains": {"feed": 400, "new": 100}, "users": 30, "items": 40}


def options(cache: Path, **more: object) -> dict[str, object]:
    return {"of": {"name": "synthetic", **SMALL}, "cache": cache, "length": 12, **more}


def source(cache: Path) -> text_tokens.TextTokens:
    return text_tokens.open(text_tokens.Options.model_validate(options(cache)))


def test_items_have_their_texts_tokens(tmp_path: Path) -> None:
    wrapped = synthetic.open(synthetic.Options.model_validate(SMALL))
    some = source(tmp_path)
    items = some.items()
    assert items.drop("item.tokens").equals(wrapped.items())
    assert some.fields[:-1] == wrapped.fields
    assert some.interactions().frame.equals(wrapped.interactions().frame)
    (model,) = tmp_path.glob("tiny-*")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(12)
    expected = [tokenizer.encode(words).ids for words in items["text"]]
    assert items["item.tokens"].to_list() == expected
    assert len(some.fields[-1].values) == tokenizer.get_vocab_size()


def test_an_item_without_words_has_none(tmp_path: Path, monkeypatch) -> None:
    class Bare(synthetic.Synthetic):
        def items(self) -> pl.DataFrame:
            known = pl.int_range(pl.len()) % 3 > 0
            return super().items().with_columns(pl.when(known).then("text").alias("text")).drop("name")

    monkeypatch.setattr(synthetic, "open", Bare)
    tokens = source(tmp_path).items()["item.tokens"]
    assert (tokens.list.len() == 0).to_list() == [at % 3 == 0 for at in range(40)]


def test_prepared_rows_end_in_them(tmp_path: Path) -> None:
    made = prepare("text_tokens", options(tmp_path / "cache"), tmp_path / "runs")
    plain = prepare("synthetic", SMALL, tmp_path / "runs")
    slot = made.schema.slots["item.tokens"]
    rows, others = (
        Rows.encode(each.split("test"), each.schema, each.domains).item_ids for each in (made, plain)
    )
    assert np.array_equal(rows[:, : slot.at.start], others)
    words = made.split("test").join(made.items(), on="item.id", how="left", maintain_order="left")
    for row, wanted in zip(rows[:, slot.at], words["item.tokens_right"].to_list(), strict=True):
        assert (row[row != PAD] - slot.offset - 1).tolist() == wanted

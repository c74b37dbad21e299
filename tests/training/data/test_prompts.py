"""A source in words: whose rows these are, and which rows of a table its tokens get."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from service.contract.errors import RunError, UnknownOption
from service.contract.field import Scope
from service.contract.schema import FeatureSchema
from training import text
from training.data.sources import prompts, synthetic

SMALL = {"domains": {"feed": 400, "new": 100}, "users": 30, "items": 20}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def source(cache, **options: object) -> prompts.Prompts:
    given = {"of": {"name": "synthetic", **SMALL}, "cache": cache, **options}
    return prompts.open(prompts.Options.model_validate(given))


def test_rows_are_the_wrapped_ones(cache):
    wrapped = synthetic.open(synthetic.Options.model_validate(SMALL)).interactions().frame
    frame = source(cache).interactions().frame
    for column in ("domain", "label", "time", "probability", "user.id", "item.id"):
        assert frame[column].equals(wrapped[column])
    assert {*frame.columns} - {*wrapped.columns} == {"context.tokens"}


def test_tokens_are_the_prompts(cache):
    some = source(cache)
    wrapped = synthetic.open(synthetic.Options.model_validate(SMALL))
    rows, items = wrapped.interactions().frame, wrapped.items()
    (model,) = cache.glob("tiny-*")
    askers = text.askers(rows, items, wrapped.fields, "full", 5)
    described = rows.join(
        items.select("item.id").with_columns(product=pl.Series(text.products(items, "full"))), on="item.id"
    )["product"]
    whole = [asker + product for asker, product in zip(askers, described, strict=True)]
    expected = text.tokenise(model, whole, 160)
    found = (
        some.interactions()
        .frame.join(some.items(), on="item.id")
        .select(both=pl.concat_list("context.tokens", "item.tokens"))["both"]
    )
    assert found.to_list() == [row[row >= 0].tolist() for row in expected]


def test_a_token_has_the_row_after_its_id_whether_training_saw_it_or_not(cache):
    some = source(cache)
    frame = some.interactions().frame.join(some.items(), on="item.id")
    schema = FeatureSchema.fit(some.fields, {field.key: frame[field.key].to_list() for field in some.fields})
    (model,) = cache.glob("tiny-*")
    keys: dict[Scope, str] = {"request": "context.tokens", "item": "item.tokens"}
    for scope, key in keys.items():
        encoded = schema.encode(scope, {key: frame[key].to_list()}, frame.height)
        slot = schema.slots[key]
        assert slot.field.rows == text.vocabulary(model) + 1
        found = pl.Series([row[row >= 0].tolist() for row in encoded.ids])
        assert found.list.eval(pl.element() - 1 - slot.offset).equals(frame[key], check_names=False)


def test_options_of_the_wrapped_source_are_checked_and_named_whole(cache):
    known = prompts.Options.model_validate({"of": {"name": "kuairand", "folder": "/somewhere"}})
    assert known.model_dump(mode="json")["of"] == {"name": "kuairand", "history": 0}
    assert "cache" not in known.model_dump(mode="json")
    with pytest.raises(RunError, match="source synthetic: rows"):
        source(cache, of={"name": "synthetic", "rows": 1}).interactions()
    with pytest.raises(UnknownOption):
        source(cache, of={"name": "nothing"}).interactions()
    with pytest.raises(ValidationError):
        source(cache, words="all")


def test_the_checksum_tells_tokenizers_apart(cache, tmp_path):
    text.tiny(tmp_path / "one", ["a b"])
    text.tiny(tmp_path / "two", ["a c"])
    text.tiny(tmp_path / "same", ["a b"], seed=1)
    sums = {source(cache, model=str(tmp_path / name)).checksum for name in ("one", "two")}
    assert len({source(cache).checksum, *sums}) == 3
    assert source(cache, model=str(tmp_path / "same")).checksum in sums
    assert source(cache).checksum == source(cache).checksum


def test_a_model_of_ones_own_is_read(cache, tmp_path):
    text.tiny(tmp_path / "one", ["a b"])
    frame = source(cache, model=str(tmp_path / "one"), length=8).interactions().frame
    assert np.array(frame["context.tokens"].list.max()).max() < text.vocabulary(tmp_path / "one")
    with pytest.raises(RunError, match="is not there"):
        source(cache, model=str(tmp_path / "none")).interactions()

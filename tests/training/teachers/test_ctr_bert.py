"""CTR-BERT with a tiny language model. Expected vectors are the library's, averaged by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
import transformers

from export.bundle import build as build_bundle
from service.contract.errors import RunError
from service.contract.field import PAD
from tests.conftest import TINY, Trained, train
from training import checkpoint, text
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.model import build
from training.recipe import Recipe
from training.teachers.ctr_bert import CTRBert, Texts

PARADIGM: dict[str, Any] = {"name": "training.teachers.ctr_bert", "model": "tiny"}
WHOLE: dict[str, Any] = {
    **TINY,
    "data": {"name": "text_tokens", "length": 24, "of": TINY["data"]},
    "paradigm": PARADIGM,
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where tiny language models are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def prepared(data_root: Path) -> Prepared:
    recipe = Recipe.model_validate(WHOLE)
    return prepare(recipe.data.name, recipe.data.options, data_root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    return train(tmp_path_factory.mktemp("frozen") / "run", data_root, **WHOLE)


def fresh(prepared: Prepared, **changes: Any) -> CTRBert:
    recipe = Recipe.model_validate({**WHOLE, "paradigm": {**PARADIGM, **changes}})
    return cast("CTRBert", build(recipe, prepared.schema, prepared.domains).paradigm)


def rows_of(prepared: Prepared) -> Rows:
    return Rows.encode(prepared.split("test"), prepared.schema, prepared.domains)


def counted(texts: Texts) -> list[int]:
    """How many texts each pass through the language model has, from now on."""
    sizes: list[int] = []
    texts.model.register_forward_hook(lambda _, given, made: sizes.append(len(made.last_hidden_state)))
    return sizes


def test_a_vector_is_the_mean_of_the_texts_states() -> None:
    config = text.tiny_config(50)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    texts = Texts(text.language_model("tiny", 50), 8, frozen=False).eval()
    texts.model.load_state_dict(model.state_dict(), strict=False)
    long, short = [7, 1, 30, 2], [9, 3]
    rows = torch.tensor([[8 + token for token in long], [8 + token for token in short] + [PAD] * 2])
    with torch.inference_mode():
        found = texts(torch.cat([rows, torch.full((1, 4), PAD), rows[:1]]).int())
        for at, tokens in ((0, long), (1, short), (3, long)):
            states = model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
            torch.testing.assert_close(found[at], states.mean(0), atol=1e-6, rtol=1e-5)
    assert not found[2].any()


def test_a_frozen_model_reads_each_text_once_and_to_the_same_bits(prepared: Prepared) -> None:
    paradigm, again = fresh(prepared), fresh(prepared)
    rows = rows_of(prepared)
    sizes = counted(paradigm.body.texts)
    start = prepared.schema.slots["item.tokens"].at.start
    tokens = rows.item_ids[:, start:]
    with torch.inference_mode():
        whole = paradigm.eval()(rows)
        read = len(sizes)
        assert sizes == [1] * len(torch.unique(tokens, dim=0))
        assert torch.equal(paradigm(rows), whole)
        one = again.body.texts(tokens[:1])
    paradigm.servable()(*rows[:5].arrays)
    assert len(sizes) == read  # the one-domain form knows them, too
    assert torch.equal(paradigm.body.texts(tokens)[0], one[0])
    # What was read while nothing was trained may be trained on.
    paradigm(rows).sum().backward()
    assert paradigm.body.text[1].weight.grad is not None


def test_a_model_that_learns_reads_a_batchs_texts_together(prepared: Prepared) -> None:
    paradigm = fresh(prepared, unfrozen=1)
    rows = rows_of(prepared)[:64]
    sizes = counted(paradigm.body.texts)
    paradigm.eval()(rows)
    paradigm(rows)
    start = prepared.schema.slots["item.tokens"].at.start
    assert sizes == [len(torch.unique(rows.item_ids[:, start:], dim=0))] * 2


@pytest.mark.parametrize("unfrozen", [0, 2, 9])
def test_what_learns_of_the_language_model(prepared: Prepared, unfrozen: int) -> None:
    """A tiny model has four layers."""
    paradigm = fresh(prepared, unfrozen=unfrozen)
    (stage,) = paradigm.stages()
    everything = {name for name, _ in paradigm.named_parameters()}
    language = {name for name in everything if name.startswith("body.texts.")}
    assert everything - language <= stage.trains
    layers = {int(name.split(".layer.")[1].split(".")[0]) for name in stage.trains & language}
    assert layers == {*range(4)[4 - min(unfrozen, 4) :]}
    assert not any("embeddings" in name for name in stage.trains & language)


def test_training_moves_what_learns_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    start = fresh(trained.prepared)
    paradigm = cast("CTRBert", trained.model.paradigm)
    before, after = start.state_dict(), paradigm.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("body.texts.") for name in moved)
    assert {"body.text.1.weight", "body.embedding.table", "domains.0.tower.0.weight"} <= moved
    tuned = train(tmp_path / "run", trained.data, **{**WHOLE, "paradigm": {**PARADIGM, "unfrozen": 1}})
    after = tuned.model.paradigm.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".layer.")[1][0] for name in moved if name.startswith("body.texts.")} == {"3"}


def test_tokens_have_no_embeddings_and_words_decide_only_what_was_learned(
    prepared: Prepared, trained: Trained
) -> None:
    paradigm = fresh(prepared)
    tokens = prepared.schema.slots["item.tokens"]
    assert paradigm.body.embedding.table.shape[0] == prepared.schema.rows - tokens.field.rows
    rows = rows_of(prepared)[:20]
    others = Rows(*rows.arrays, rows.domain, rows.label)
    others.item_ids[:, tokens.at] = rows.item_ids.flip(0)[:, tokens.at].clone()
    rows = rows_of(prepared)[:20]
    with torch.inference_mode():
        assert torch.equal(paradigm.eval()(rows), paradigm(others))
        learned = trained.model.paradigm.eval()
        assert (learned(rows) - learned(others)).abs().max() > 1e-4


def test_its_language_model_is_in_the_graph_and_the_pack_is_a_tower(trained: Trained, tmp_path: Path) -> None:
    run = checkpoint.load(trained.folder, trained.data)
    bundle = build_bundle(*run, tmp_path, item_halves=False)
    (parity,) = bundle.manifest.parity
    assert parity.max_abs_diff < 1e-5
    nodes = onnx.load(str(bundle.path / bundle.manifest.graph), load_external_data=False).graph.node
    assert [node.op_type for node in nodes].count("Softmax") == 4  # one a layer
    owned = [spec.name for spec in bundle.manifest.inputs if spec.source == "pack"]
    assert {name.rpartition(".")[0] for name in owned} == {"pack.own.tower.0", "pack.own.tower.2"}


def test_data_without_tokens_is_refused(data_root: Path) -> None:
    recipe = Recipe.model_validate({**WHOLE, "data": TINY["data"]})
    plain = prepare(recipe.data.name, recipe.data.options, data_root)
    with pytest.raises(RunError, match="text_tokens"):
        build(recipe, plain.schema, plain.domains)

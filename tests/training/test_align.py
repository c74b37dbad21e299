"""Alignment over any paradigm: what moves, what does not, and what is left of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import polars as pl
import pytest
import torch
import yaml
from rich.progress import Progress
from safetensors.torch import load_file

from export import graph
from export.servable import ScopedModel, graph_inputs
from service.contract import plugins
from service.contract.errors import RunError
from tests.conftest import TINY, Trained, train
from tests.killing import train_and_kill
from training import compare
from training.align import Alignment, aligning, heads
from training.checkpoint import Run
from training.compare import Comparison
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.loop import Loop, Pass
from training.model import build
from training.plan import Plan
from training.recipe import Recipe
from training.stages import train_mode, training_only

ALIGN: dict[str, Any] = {"epochs": 2, "batch": 256, "n_prompts": 3, "live": 8, "lr": 5e-3}
WHOLE: dict[str, Any] = {**TINY, "paradigm": {"name": "shared_bottom"}, "align": ALIGN}


def stage(prepared: Prepared, **changes: Any) -> tuple[Alignment, Pass]:
    """The stage before it runs, over a fresh model."""
    recipe = Recipe.model_validate({**WHOLE, **changes})
    model = build(recipe, prepared.schema, prepared.domains)
    train, valid = (
        Rows.encode(prepared.split(split), prepared.schema, prepared.domains) for split in ("train", "valid")
    )
    device = torch.device("cpu")
    work = aligning(recipe, prepared, model.paradigm, train=train, valid=valid, device=device)
    assert isinstance(work.module, Alignment)
    return work.module, work


def run(work: Pass) -> None:
    with Progress(disable=True) as bars:
        Loop(0, bars)(work)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def prepared(data_root: Path) -> Prepared:
    return prepare(
        "synthetic", {key: value for key, value in TINY["data"].items() if key != "name"}, data_root
    )


@pytest.fixture(scope="module")
def csamp(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    return train(tmp_path_factory.mktemp("csamp") / "run", data_root, **WHOLE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    return train(tmp_path_factory.mktemp("plain") / "run", data_root, **{**WHOLE, "align": None})


def test_it_comes_first_and_learns(csamp: Trained, plain: Trained) -> None:
    logged = lines(csamp.folder)
    assert [line["stage"] for line in logged][:3] == ["align", "align", "joint"]
    assert logged[1]["loss"] < logged[0]["loss"]
    assert logged[1]["valid_auc"] > logged[0]["valid_auc"]
    a, b = csamp.model.paradigm.state_dict(), plain.model.paradigm.state_dict()
    assert {*a} == {*b}
    assert not torch.equal(a["body.embedding.table"], b["body.embedding.table"])


def test_the_graph_is_the_models_without_it_node_for_node(
    csamp: Trained, plain: Trained, tmp_path: Path
) -> None:
    graphs = []
    for name, trained in (("csamp", csamp), ("plain", plain)):
        inputs = graph_inputs(trained.model.schema, trained.model)
        (tmp_path / name).mkdir()
        path = tmp_path / name / "graph.onnx"
        graph.write(ScopedModel(trained.model.paradigm.servable(), inputs), inputs, path)
        graphs.append(onnx.load(str(path), load_external_data=False).graph)
    one, other = graphs
    assert [node.SerializeToString() for node in one.node] == [
        node.SerializeToString() for node in other.node
    ]
    shapes = [[(each.name, [*each.dims]) for each in of.initializer] for of in graphs]
    assert shapes[0] == shapes[1]
    assert list(one.input) == list(other.input)
    sizes = [trained.model.parameters() for trained in (csamp, plain)]
    assert sizes[0] == sizes[1]


def test_what_moves_and_what_does_not(prepared: Prepared) -> None:
    module, work = stage(prepared)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run(work)
    after = module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("reader.") for name in moved)
    assert "cache" in moved
    assert {"paradigm.body.embedding.table", "projection.weight", "prompts.meta.0.weight"} <= moved
    assert {f"prompts.embeddings.{at}.weight" for at in range(5)} <= moved
    # The logits have no part in it: neither what makes them of hidden units nor the first-order part.
    for at in range(4):
        assert f"paradigm.domains.{at}.tower.0.weight" in moved  # the general one's, too
        assert f"paradigm.domains.{at}.tower.2.weight" not in moved
    assert not any("first_order" in name for name in moved)


def test_what_the_first_stage_leaves_alone_stays_bit_identical(prepared: Prepared) -> None:
    """PTE's prompts are not trained before tuning, so they are not aligned either."""
    module, work = stage(
        prepared,
        paradigm={"name": "plate", "pretrain_prompts": False, "meta_prompts": 4, "prompt_hidden": [8]},
    )
    paradigm = module.paradigm
    before = {name: tensor.clone() for name, tensor in paradigm.state_dict().items()}
    run(work)
    frozen = {name for name, _ in paradigm.named_parameters()} - paradigm.stages()[0].trains
    assert any("prompt" in name for name in frozen)
    assert all(torch.equal(before[name], paradigm.state_dict()[name]) for name in frozen)
    assert not torch.equal(
        before["general.embedding.table"], paradigm.state_dict()["general.embedding.table"]
    )


@pytest.mark.parametrize("prompts", ["scenario", "learned", "none"])
def test_prompts_have_gradients_and_the_language_model_none(prepared: Prepared, prompts: str) -> None:
    module, work = stage(prepared, align={**ALIGN, "prompts": prompts})
    work.score()
    with training_only(module, work.trains):
        train_mode(module)
        assert not any(part.training for part in module.reader.modules())
        work.loss(work.rows[:200]).backward()
    assert all(parameter.grad is None for parameter in module.reader.parameters())
    own = {name: parameter for name, parameter in module.named_parameters() if name.startswith("prompts.")}
    assert bool(own) == (prompts != "none")
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert module.projection.weight.grad is not None


def test_texts_are_read_when_an_epoch_begins_and_a_few_in_each_step(prepared: Prepared) -> None:
    module, work = stage(prepared)
    work.score()
    assert (module.cache.norm(dim=1) > 0).all()
    read: list[int] = []
    module.reader.register_forward_hook(lambda _, given, made: read.append(len(made)))
    work.loss(work.rows[:200])
    assert len(read) == 1
    assert 0 < read[0] <= ALIGN["live"]
    cached = module.cache.clone()
    run(work)
    assert not torch.equal(cached, module.cache)
    with torch.no_grad():
        at = torch.arange(3)
        torch.testing.assert_close(module._texts(at), module.cache[at])


@pytest.mark.parametrize("paradigm", ["shared_bottom", "mmoe", "ple", "sarnet", "mi_dpg", "plate"])
def test_a_representation_is_the_rows_own(prepared: Prepared, paradigm: str) -> None:
    """In a batch of all domains it is as for the row alone, whatever the order of domains."""
    module, work = stage(prepared, paradigm={"name": paradigm})
    module.eval()
    rows, none = work.rows[:40], work.rows[:0]
    with torch.no_grad():
        together = module._hidden(rows, rows[:7].under(3))
        assert len(together) == 47
        for at in range(40):
            alone = module._hidden(rows[at : at + 1], none)
            torch.testing.assert_close(alone[0], together[at], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module._hidden(rows[:7].under(3), none), together[40:])
    assert len(torch.unique(rows.domain)) == 3
    assert not any(each._forward_pre_hooks for each in module.modules())


@pytest.mark.parametrize("name", plugins.names("training.paradigms"))
def test_every_paradigm_has_hidden_units_or_is_refused(prepared: Prepared, name: str) -> None:
    recipe = Recipe.model_validate({**WHOLE, "paradigm": {"name": name}})
    paradigm = build(recipe, prepared.schema, prepared.domains).paradigm
    if name == "single":  # each domain starts anew, from a copy that nothing trains
        with pytest.raises(RunError, match="this paradigm has 2 of them for 3 domains"):
            heads(paradigm, 3)
    else:
        assert len(heads(paradigm, 3)) in {1, 4}


def test_one_text_is_no_negative_of_itself(prepared: Prepared) -> None:
    """Rows of one item alone have nothing to be told from."""
    module, work = stage(prepared, align={**ALIGN, "loss": "ctrl", "prompts": "none"})
    work.score()
    texts = work.rows.text
    assert texts is not None
    word = module.words[texts]
    rows = work.rows[word == word[0]]
    assert len(rows) > 2
    with torch.no_grad():
        assert float(work.loss(rows)) == pytest.approx(0, abs=1e-6)
        assert float(work.loss(work.rows[:100])) > 1


def test_rows_without_a_text_are_left_out(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    items = prepared.items()
    gone = items["item.id"][:30]
    fewer = items.with_columns(text=pl.when(~pl.col("item.id").is_in(gone.implode())).then("text"))
    monkeypatch.setattr(Prepared, "items", lambda self: fewer)
    _, work = stage(prepared)
    known = prepared.split("train").filter(~pl.col("item.id").is_in(gone.implode()))
    assert 0 < len(work.rows) == known.height < prepared.split("train").height
    assert torch.equal(work.rows.label, torch.tensor(known["label"].to_list()).float())
    monkeypatch.setattr(Prepared, "items", lambda self: items.drop("text"))
    with pytest.raises(RunError, match="no texts"):
        stage(prepared)


# It saves after each step and each epoch: 16 is after the first epoch of the alignment, 24 within the
# second epoch, 45 within the joint stage.
@pytest.mark.parametrize("saved", [16, 24, 45])
def test_a_run_killed_and_resumed_ends_with_the_same_bits(saved: int, csamp: Trained, tmp_path: Path) -> None:
    train_and_kill(tmp_path / "run", csamp.data, saved, WHOLE)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert (state["key"] == "align") == (saved < 45)
    resumed = train(tmp_path / "run", csamp.data, **WHOLE)
    a, b = csamp.model.paradigm.state_dict(), resumed.model.paradigm.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    untimed = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder)]
        for folder in (csamp.folder, resumed.folder)
    ]
    assert untimed[0] == untimed[1]


def test_a_run_whose_alignment_is_complete_goes_on_after_it(csamp: Trained, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(WHOLE)
    folder = Run(tmp_path / "run", recipe, csamp.prepared)
    with Progress(disable=True) as bars:
        first = Fit(recipe, csamp.prepared, folder, bars)
        first._align()
        assert folder.stage == "align"
        again = Fit(recipe, csamp.prepared, folder, bars)
        again._align = lambda: pytest.fail("it is done")  # type: ignore[method-assign]
        model = again()
    a, b = csamp.model.paradigm.state_dict(), model.paradigm.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert load_file(tmp_path / "run" / "weights.safetensors").keys() == a.keys()


def test_a_teacher_is_not_aligned(csamp: Trained, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(WHOLE)
    with Progress(disable=True) as bars, pytest.raises(RunError, match="a teacher is not aligned"):
        Fit(recipe, csamp.prepared, Run(tmp_path, recipe, csamp.prepared), bars, csamp.rows("train"))


def test_a_recipe_without_it_is_the_same_run_as_before() -> None:
    assert "align" not in Recipe.model_validate(TINY).model_dump(mode="json")
    assert Recipe.model_validate(WHOLE).model_dump(mode="json")["align"]["live"] == 8


def test_rows_of_a_plan_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"name": "synthetic", "domains": {"a": 600, "b": 300}, "users": 40, "items": 30}
    recipe = {**WHOLE, "name": "base", "data": {"name": "movielens_1m"}, "joint": {"epochs": 1}}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "base.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(compare, "__file__", str(tmp_path / "compare.py"))
    plan = Plan.model_validate(
        {
            "recipe": "base",
            "seeds": [0],
            "tuning": [{"epochs": 0}],
            "subjects": {"one": {"source": data}},
            "against": "plain",
            "rows": {
                "plain": {"change": {"align": None}},
                "ctrl": {"joint_of": "plain", "change": {"align": {"loss": "ctrl", "prompts": "none"}}},
                "csamp": {"joint_of": "plain"},
            },
        }
    )
    with Progress(disable=True) as bars:
        report = Comparison(plan, tmp_path / "out", tmp_path / "data", processes=1, progress=bars)()
    recipes = [json.loads(path.read_text())["recipe"] for path in (tmp_path / "out").rglob("recipe.json")]
    found = [tuple(map(recipe.get("align", {}).get, ("loss", "prompts", "k"))) for recipe in recipes]
    assert {*found} == {(None, None, None), ("ctrl", "none", 5), ("sec", "scenario", 5)}
    aucs = {row["macro"]["auc_mean"] for row in report["one"]["rows"].values()}
    assert len(aucs) == 3
    assert {*report["one"]["differences_from"]["plain"]} == {"ctrl", "csamp"}


def test_the_plans_csamp_is_the_recipes() -> None:
    """A plan whose base is another recipe has to say all that CSAMP is."""
    recipes = {
        name: Recipe.load(Path(f"training/recipes/{name}.yaml")).model_dump(mode="json")
        for name in ("csamp_movielens", "ctr_bert_movielens")
    }
    csamp, base = recipes.values()
    row = Plan.load(Path("training/plans/csamp.yaml")).rows["Shared bottom, CSAMP"]
    assert row.plain
    made = compare.merged({**base, "data": base["data"]["of"], "name": csamp["name"]}, row.change)
    assert Recipe.model_validate(made) == Recipe.model_validate(csamp)

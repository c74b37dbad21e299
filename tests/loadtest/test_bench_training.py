"""The benchmark of training, without the other libraries, whose environment tests do not have."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import binary_cross_entropy_with_logits

from loadtest.bench_training import Bare, Ours, bench, readable_by_all, recipe_for, show
from loadtest.rivals.bare import BareDeepFM
from tests.conftest import TINY
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.paradigms.mix import Mix
from training.recipe import Choice, Recipe


@pytest.fixture
def recipe() -> Recipe:
    return recipe_for("synthetic").model_copy(update={"data": Choice.model_validate(TINY["data"])})


@pytest.fixture
def prepared(recipe: Recipe, data_root: Path) -> Prepared:
    return readable_by_all(prepare(recipe.data.name, recipe.data.options, data_root))


def test_the_report_has_its_shape_and_says_who_is_missing(
    recipe: Recipe, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench-training" / "report.json"
    report = bench(recipe, out, data=data_root, rounds=2, batches=1, python=tmp_path / "python")
    assert json.loads(out.read_text()) == report

    rates = report["rows_per_s"]
    assert list(rates) == ["mdctr", "mdctr_general", "bare", "torch_rechub", "fuxictr"]
    assert all(rates[name] > 0 for name in ("mdctr", "mdctr_general", "bare"))
    assert report["ratio_to_bare"] == pytest.approx(rates["mdctr"] / rates["bare"])
    for rival in ("torch_rechub", "fuxictr"):
        assert rates[rival] is None
        assert report[f"ratio_to_{rival}"] is None
        assert str(tmp_path / "python") in report["missing"][rival]
    assert (report["rounds"], report["batches"], report["batch"], report["threads"]) == (2, 1, 2048, 1)
    assert report["rows"] == 2048
    assert report["backbone"] == "deepfm"
    assert report["peak_mb"]["mdctr"] > 50
    assert {"mdctr", "torch", "numpy"} <= report["versions"].keys()

    shown = StringIO()
    show(report, Console(file=shown, width=120))
    assert f"{rates['bare']:,.0f}" in shown.getvalue()
    assert "fuxictr did not run" in shown.getvalue()


def test_another_backbone_is_trained_and_the_bare_loop_does_not_have_it(
    recipe: Recipe, data_root: Path, tmp_path: Path
) -> None:
    report = bench(
        recipe.model_copy(update={"backbone": Choice(name="dcn")}),
        tmp_path / "report.json",
        data=data_root,
        rounds=1,
        batches=1,
        python=tmp_path / "python",
    )
    assert report["backbone"] == "dcn"
    assert report["rows_per_s"]["mdctr"] > 0
    assert report["rows_per_s"]["bare"] is None
    assert report["ratio_to_bare"] is None
    assert report["missing"]["bare"] == "it has no dcn"


def pairs(ours: Mix, theirs: BareDeepFM) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parameters of both that mean the same; the two halves of the first layer are columns of one there."""
    general = ours.general
    mlp = general.backbone.get_submodule("mlp")
    first, *rest = mlp.get_submodule("first"), *mlp.get_submodule("rest").parameters()
    request = first.get_parameter("request.weight")
    weight, *others = theirs.mlp.parameters()
    return [
        (general.embedding.table, theirs.embedding.weight),
        (general.first_order.weight, theirs.first_order.weight[:, 0]),
        (general.first_order.bias, theirs.bias),
        (ours.domain_bias, theirs.domain.weight[:, 0]),
        (request, weight[:, : request.shape[1]]),
        (first.get_parameter("item.weight"), weight[:, request.shape[1] :]),
        *zip((first.get_parameter("request.bias"), *rest, *general.head.parameters()), others, strict=True),
    ]


def test_both_loops_train_the_same_network(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    """The same logits and the same gradients from the same weights, over the same rows."""
    rows = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
    without = recipe.model_copy(update={"general_share": 0.0})
    ours = Ours(without, prepared, rows, tmp_path / "run")
    bare = Bare(recipe, prepared, rows)
    mix, net = ours.model.paradigm, bare.model
    assert isinstance(mix, Mix)
    with torch.no_grad():
        for parameter, same in pairs(mix, net):
            parameter.normal_(std=0.1)
            same.copy_(parameter)
    assert sum(p.numel() for p in mix.parameters()) == sum(p.numel() for p in net.parameters())

    net.eval()
    ids, domain, label = bare.columns
    mine, theirs = mix(rows), net(ids, domain)
    torch.testing.assert_close(mine, theirs)
    for logits, model in ((mine, mix), (theirs, net)):
        torch.autograd.backward(binary_cross_entropy_with_logits(logits, label))
        # A step of plain gradient descent, so that the weights show the gradients.
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    for parameter, same in pairs(mix, net):
        torch.testing.assert_close(parameter, same)


def test_a_round_is_an_epoch_of_both(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    rows = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
    for contender in (Ours(recipe, prepared, rows, tmp_path / "run"), Bare(recipe, prepared, rows)):
        assert contender.seconds() > 0
        (steps,) = {int(state["step"]) for state in contender.optimiser.state.values()}
        assert steps == -(-len(rows) // 2048)

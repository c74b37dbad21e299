"""The benchmark of training, without the other libraries, whose environment tests do not have."""

from __future__ import annotations

import json
import math
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn.functional import binary_cross_entropy_with_logits

from loadtest.bench_training import (
    BACKBONES,
    RIVALS,
    Bare,
    Ours,
    bench,
    markdown,
    model_of,
    readable_by_all,
    recipe_for,
    recipes,
    show,
)
from loadtest.rivals.bare import BareDeepFM
from loadtest.rivals.tasks import labels, own_rows
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
    assert json.loads(out.read_text()) == {"deepfm": report}

    rates = report["rows_per_s"]
    assert list(rates) == ["mdctr", "mdctr_general", "bare", *RIVALS]
    assert list(report["rows_per_core_s"]) == list(rates)
    assert all(rates[name] > 0 for name in ("mdctr", "mdctr_general", "bare"))
    assert report["ratio_to_bare"] == pytest.approx(rates["mdctr"] / rates["bare"])
    for rival in RIVALS:
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


RIVAL = """import json, os, sys
import numpy as np

print("a library may say what it likes")
with open(sys.argv[3]) as file:
    task = json.load(file)
rows = np.load(task["rows"])
assert rows["domain"].max() < task["domains"] and {*task["fields"]} < {*rows}
if sys.argv[2].endswith("fuxictr"):
    sys.exit("it has no " + task["model"])
out = os.fdopen(int(sys.argv[4]), "w", buffering=1)
print(json.dumps({"version": "1.2", "torch": str(task["paradigm_options"])}), file=out)
for _ in sys.stdin:
    print(json.dumps({"seconds": 0.5}), file=out)
"""


def test_towers_are_timed_beside_the_other_libraries_and_models_share_a_file(
    recipe: Recipe, data_root: Path, tmp_path: Path
) -> None:
    """With a rival that takes half a second an epoch: 2048 rows are 4096 rows a second."""
    python, out = tmp_path / "python", tmp_path / "report.json"
    python.write_text(f"#!{sys.executable}\n{RIVAL}")
    python.chmod(0o755)
    out.write_text('{"ranks": {"ratio": 1.4}, "mmoe": {"old": true}}')
    mmoe = recipe_for("synthetic", paradigm="mmoe").model_copy(update={"data": recipe.data})
    report = bench(mmoe, out, data=data_root, rounds=1, batches=1, python=python)

    assert (report["backbone"], report["paradigm"], report["batches"]) == ("wide_deep", "mmoe", 1)
    assert report["rows_per_s"]["torch_rechub"] == report["rows_per_s"]["deepctr_torch"] == 4096
    assert report["ratio_to_torch_rechub"] == pytest.approx(report["rows_per_s"]["mdctr"] / 4096)
    assert report["missing"] == {"bare": "it has no mmoe", "fuxictr": "fuxictr ended: it has no mmoe"}
    assert report["versions"]["deepctr_torch"] == "1.2"
    assert "'experts': 4" in report["versions"]["deepctr_torch.torch"]
    assert report["peak_mb"]["deepctr_torch"] > 1
    written = json.loads(out.read_text())
    assert written == {"ranks": {"ratio": 1.4}, "mmoe": report}

    heads, _, *lines = markdown(written).splitlines()
    assert heads.startswith("| model | mdctr, rows/s | torch-rechub 1.2 | times as fast | by core time |")
    ratio, core = (report[f"{kind}_to_torch_rechub"] for kind in ("ratio", "core_ratio"))
    (line,) = lines
    assert line.startswith(
        f"| mmoe | {report['rows_per_s']['mdctr']:,.0f} | 4,096 | {ratio:.2f} | {core:.2f} |"
    )
    assert "| - | - | - |" in line


def test_a_model_is_called_after_what_other_libraries_have() -> None:
    names = [model_of(recipe) for recipe in recipes("douban")]
    assert names == [*BACKBONES, "shared_bottom", "mmoe", "ple"]
    assert model_of(recipe_for("douban")) == "deepfm"
    assert model_of(recipe_for("douban", "deepfm", "ple")) == "ple_deepfm"


def test_a_row_counts_for_its_own_domains_task_alone() -> None:
    """By hand: of three rows, two are the first domain's, of 0.8 and 0.4 where the labels are 1 and 0."""
    found = labels(np.array([1, 0, 1]), np.array([0, 0, 1]), 2)
    assert found.tolist() == [[1, -1], [0, -1], [-1, 1]]
    probability = torch.tensor([0.8, 0.4, 0.1], requires_grad=True)
    first, second = torch.from_numpy(found).T
    loss = own_rows(probability, first)
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 3)
    (gradient,) = torch.autograd.grad(loss, probability)
    assert gradient.tolist() == pytest.approx([-1 / 0.8 / 3, 1 / 0.6 / 3, 0])
    assert own_rows(probability, second, reduction="sum").item() == pytest.approx(-math.log(0.1))


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

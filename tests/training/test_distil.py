"""What a teacher says of rows that it has not read, and what a student makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pyarrow import parquet
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import load_file

from service.contract.errors import RunError
from tests.conftest import TINY, Trained, train
from tests.killing import train_and_kill
from tests.training.test_fit import same
from training import distil, losses
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, Split, prepare
from training.distil import Targets
from training.model import build
from training.recipe import Distil, Recipe

SOURCE = {"name": "synthetic", "domains": {"a": 600, "b": 300}, "users": 40, "items": 30}
TEACHER: dict[str, Any] = {
    "name": "teacher",
    "data": {"name": "prompts", "length": 40, "item_length": 16, "of": SOURCE},
    "paradigm": {"name": "training.teachers.unictr", "model": "tiny", "tower": [8], "every": 4},
    "general_share": 1.0,
    "joint": {"epochs": 1, "batch": 64, "lr": 2e-3},
}
STUDENT: dict[str, Any] = {
    "data": {"name": "text_vectors", "size": 4, "of": SOURCE},
    "distil": {"size": 4, "representation": 0.5, "teacher": TEACHER},
}
FOLDS = 2


def without(**changes: Any) -> dict[str, Any]:
    """The student, its distillation changed."""
    return {**STUDENT, "distil": {**STUDENT["distil"], **changes}}


@pytest.fixture(scope="module", autouse=True)
def _models_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    return train(tmp_path_factory.mktemp("runs") / "student", data_root, **STUDENT)


@dataclass(frozen=True)
class Taught:
    """The folder of the targets, and whose they are."""

    folder: Path
    recipe: Recipe
    prepared: Prepared

    @property
    def table(self) -> dict[str, npt.NDArray[Any]]:
        """Targets by column, the representations (n, r)."""
        found = parquet.read_table(self.folder / "targets.parquet")
        columns = {name: found[name].to_numpy() for name in ("row", "fold", "logit")}
        return {**columns, "representation": np.array(found["representation"].to_pylist(), np.float64)}

    def rows(self, split: Split) -> Rows:
        """The teacher's."""
        return Rows.encode(self.prepared.split(split), self.prepared.schema, self.prepared.domains)

    def said(self, run: Path, rows: Rows) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Logits (n,) and representations (n, width), by the paradigm that a run holds."""
        model = build(self.recipe, self.prepared.schema, self.prepared.domains)
        Run(run, self.recipe, self.prepared).restore(model)
        with torch.inference_mode():
            logit, representation = model.paradigm.eval().read(rows)  # type: ignore[operator]
        return logit.numpy(), representation.double().numpy()


@pytest.fixture(scope="module")
def taught(student: Trained) -> Taught:
    return targets(student.folder.parent, student.data)


def targets(runs: Path, data: Path) -> Taught:
    (folder,) = runs.glob("teachers/teacher-*/folds-*")
    recipe = Recipe.model_validate(TEACHER)
    return Taught(folder, recipe, prepare(recipe.data.name, recipe.data.options, data))


def test_a_rows_target_is_what_the_teacher_of_the_other_folds_says(taught: Taught) -> None:
    table, rows = taught.table, taught.rows("train")
    assert np.array_equal(table["row"], taught.prepared.split("train")["row"].to_numpy())
    said = [taught.said(taught.folder / f"fold-{at}", rows)[0] for at in range(FOLDS)]
    for at in range(FOLDS):
        held = table["fold"] == at
        assert held.mean() == pytest.approx(1 / FOLDS, abs=0.01)
        np.testing.assert_allclose(table["logit"][held], said[at][held], rtol=2e-3, atol=2e-3)
        assert np.abs(table["logit"][held] - said[1 - at][held]).max() > 0.02


def test_a_folds_labels_have_no_part_in_its_teacher(taught: Taught, tmp_path: Path) -> None:
    """With the other labels in a fold its teacher is the same, bit by bit, and the other fold's is not."""
    options = Recipe.model_validate({**TINY, **STUDENT}).distil
    assert options is not None
    with Progress(disable=True) as bars:
        teaching = distil._Teaching(taught.recipe, taught.prepared, bars)
        held = torch.from_numpy(taught.table["fold"] == 0)
        rows = teaching.train
        teaching.train = replace(rows, label=torch.where(held, 1 - rows.label, rows.label))
        for at in range(FOLDS):
            teaching.without(tmp_path, options, at)
    before, after = (
        [load_file(folder / f"fold-{at}" / "weights.safetensors") for at in range(FOLDS)]
        for folder in (taught.folder, tmp_path)
    )
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert any(not torch.equal(before[1][name], after[1][name]) for name in before[1])


def test_folds_representations_are_mapped_into_one_space(taught: Taught) -> None:
    """Expected: principal components by eigenvectors, ridge by numpy's least squares. Signs of axes are free,
    so products between rows are compared."""
    table, valid, rows = taught.table, taught.rows("valid"), taught.rows("train")
    whole = taught.said(taught.folder.parent, valid)[1]
    centred = whole - whole.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :4]
    space = centred @ axes
    space /= np.sqrt((space**2).sum(1).mean())
    expected = np.empty((len(rows), 4))
    for at in range(FOLDS):
        run, held = taught.folder / f"fold-{at}", table["fold"] == at
        x = taught.said(run, valid)[1]
        mean, x = x.mean(0), x - x.mean(0)
        ridge = np.sqrt(1e-3 * (x**2).sum() / x.shape[1]) * np.eye(x.shape[1])
        slope = np.linalg.lstsq(np.vstack([x, ridge]), np.vstack([space, np.zeros_like(ridge[:, :4])]))[0]
        expected[held] = (taught.said(run, rows)[1][held] - mean) @ slope
    found = table["representation"]
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=0.02 * (expected**2).sum(1).max())
    # One space: were an axis turned round in one fold, both folds together would not lie on a line.
    between = [np.corrcoef(found[:, k], expected[:, k])[0, 1] for k in range(4)]
    assert np.abs(between) == pytest.approx(1, abs=1e-2)


def row(label: float, *target: float) -> Rows:
    empty = torch.zeros(1, 0)
    known = torch.tensor([target]) if target else None
    return Rows(empty, empty, empty, empty, torch.zeros(1).long(), torch.tensor([label]), known)


def entropy(logit: float, p: float) -> float:
    q = 1 / (1 + math.exp(-logit))
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 4.0), (0.0, 2.0)])
def test_the_loss_is_the_formula(label: float, weight: float, temperature: float) -> None:
    z, t = 0.7, -1.3
    options = Distil(teacher={}, weight=weight, temperature=temperature)
    taught = 1 / (1 + math.exp(-t / temperature))
    expected = (1 - weight) * entropy(z, label) + weight * temperature**2 * entropy(z / temperature, taught)
    found = losses.click(torch.tensor([z]), row(label, t, 9.0), options)
    assert found.tolist() == pytest.approx([expected], rel=1e-5)
    plain = [pytest.approx(entropy(z, label), rel=1e-5)]
    assert losses.click(torch.tensor([z]), row(label), options).tolist() == plain
    assert losses.click(torch.tensor([z]), row(label, t, 9.0), None).tolist() == plain


def test_representations_are_apart_by_their_angle() -> None:
    hidden = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    target = torch.tensor([[1.0, 1.0], [5.0, 0.0], [-3.0, 0.0], [0.0, 2.0]])
    found = losses.apart(hidden, target).tolist()
    assert found == pytest.approx([1 - math.sqrt(0.5), 0, 2, 1], abs=1e-6)


def test_a_teacher_that_weighs_nothing_changes_no_bit(student: Trained) -> None:
    runs, data = student.folder.parent, student.data
    weightless = train(runs / "weightless", data, **without(weight=0, representation=0))
    assert same(weightless, train(runs / "alone", data, data=STUDENT["data"]))
    assert not same(weightless, student)
    assert not same(train(runs / "logits", data, **without(representation=0)), student)


def test_the_projection_is_not_saved(student: Trained) -> None:
    with safe_open(student.folder / "weights.safetensors", "pt") as opened:
        names = {*opened.keys()}
    fresh = build(student.recipe.model_copy(update={"distil": None}), student.prepared.schema, ("a", "b"))
    assert names == {*fresh.paradigm.state_dict()}


def test_several_backbones_take_no_representation(student: Trained) -> None:
    runs, paradigm = student.folder.parent, {"name": "mmoe", "experts": 2}
    with pytest.raises(RunError, match=r"one backbone, .* has 2; set distil\.representation to 0$"):
        train(runs / "mmoe", student.data, **STUDENT, paradigm=paradigm)
    taught = train(runs / "mmoe-logits", student.data, **without(representation=0), paradigm=paradigm)
    assert taught.model.domains == ("a", "b")


def test_targets_are_made_once(student: Trained, taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path: path.stat().st_mtime_ns for path in taught.folder.parent.rglob("*.*") if path.is_file()}
    monkeypatch.setattr(distil._Teaching, "__init__", lambda *_: pytest.fail("a teacher is trained again"))
    other = train(student.folder.parent / "other", student.data, **STUDENT, seed=1)
    assert not same(other, student)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_rows_that_the_teacher_has_not_read_are_refused(student: Trained, taught: Taught) -> None:
    frame = student.prepared.split("test")
    with pytest.raises(RunError, match="no target for some of the student's training rows"):
        Targets(taught.folder).of(frame)
    given = student.prepared.split("train")
    order = np.random.default_rng(0).permutation(given.height)[:50]
    assert torch.equal(Targets(taught.folder).of(given[order]), Targets(taught.folder).of(given)[order])


def test_a_paradigm_without_representations_is_no_teacher(student: Trained, tmp_path: Path) -> None:
    teacher = {**TEACHER, "paradigm": {"name": "mix"}, "dim": 4}
    with pytest.raises(RunError, match="no representations to teach"):
        train(tmp_path / "run", student.data, **without(teacher=teacher))
    assert not list(tmp_path.glob("teachers/*/weights.safetensors"))  # said before it was trained
    aligned = {**TEACHER, "align": {}}
    with pytest.raises(RunError, match="a teacher is not aligned"):
        train(tmp_path / "other", student.data, **without(teacher=aligned))


def test_a_paradigm_without_a_stage_over_all_domains_is_taught_by_logits_alone(
    student: Trained, tmp_path: Path
) -> None:
    changes = without(representation=0.1)
    with pytest.raises(RunError, match=r"set distil\.representation to 0"):
        train(tmp_path / "run", student.data, **{**changes, "paradigm": {"name": "single"}})


@pytest.mark.parametrize("fold", range(FOLDS))
def test_targets_are_the_same_after_a_kill_within_a_fold(
    fold: int, student: Trained, taught: Taught, tmp_path: Path
) -> None:
    train_and_kill(tmp_path / "student", student.data, 3, STUDENT, run=f"fold-{fold}")
    half = targets(tmp_path, student.data)
    assert (half.folder / f"fold-{fold}" / "state.pt").exists()
    assert not (half.folder / "targets.parquet").exists()
    again = train(tmp_path / "student", student.data, **STUDENT)
    assert same(again, student)
    for name, column in half.table.items():
        np.testing.assert_array_equal(column, taught.table[name])

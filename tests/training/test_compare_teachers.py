"""A comparison over several data sets, with a teacher and its student on the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from rich.progress import Progress

from service.contract.errors import RunError
from training import compare
from training.compare import Comparison
from training.plan import Plan

SOURCE = {"name": "synthetic", "domains": {"a": 600, "b": 300}, "users": 40, "items": 30}
NEWER = {"domains": {"c": 300}}
PARADIGM = {"name": "training.teachers.unictr", "model": "tiny", "tower": [8], "every": 4}
RECIPE: dict[str, Any] = {
    "name": "student",
    "data": {"name": "text_vectors", "size": 4, "of": SOURCE},
    "dim": 4,
    "backbone": {"name": "deepfm", "hidden": [8]},
    "paradigm": {"name": "plate", "prompt_hidden": [8]},
    "joint": {"epochs": 1},
    "tuning": {"epochs": 1},
    "distil": {
        "size": 4,
        "teacher": {
            "name": "teacher",
            "data": {"name": "prompts", "length": 40, "item_length": 16, "of": SOURCE},
            "paradigm": PARADIGM,
            "general_share": 1.0,
            "joint": {"epochs": 1, "batch": 64},
            "tuning": {"epochs": 1, "batch": 64},
        },
    },
}
PLAN: dict[str, Any] = {
    "recipe": "student",
    "seeds": [0, 1],
    "tuning": [{"epochs": 1}],
    "subjects": {"one": {"source": SOURCE, "thin": ["b"], "unseen": NEWER}},
    "against": "without",
    "distilled": {"teacher": "teacher", "student": "student", "without": "without"},
    "rows": {
        "teacher": {"teacher": True},
        "student": {"tries": [{}, {"distil": {"weight": 0.1}}, {"distil": None}]},
        "without": {"change": {"distil": None}},
        "ids": {"plain": True, "change": {"paradigm": {"name": "mix"}, "distil": None}},
        "flat teacher": {"teacher": True, "seeds": [0], "change": {"paradigm": {"ladder": False}}},
    },
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("compare")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "student.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "__file__", str(folder / "compare.py"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return folder, run(folder)


def run(folder: Path, only: tuple[str, ...] = ()) -> dict[str, Any]:
    with Progress(disable=True) as bars:
        plan = Plan.model_validate(PLAN)
        return Comparison(plan, folder / "out", folder / "data", processes=1, progress=bars, only=only)()


def test_every_row_is_reported_for_every_subject(done):
    report = done[1]
    assert report["subjects"] == ["one"]
    one = report["one"]
    assert [*one["rows"]] == [*PLAN["rows"]]
    for row in one["rows"].values():
        assert {"a", "b", "macro"} <= row.keys()
        # The mean of two domains, by hand.
        slices = row["slices"]
        assert slices["macro"]["auc_mean"] == pytest.approx(
            (slices["a"]["auc_mean"] + slices["b"]["auc_mean"]) / 2
        )
        assert slices["macro"]["auc_mean"] == pytest.approx(row["macro"]["auc_mean"])
        assert slices["thin domains"] == slices["b"]
    assert one["rows"]["flat teacher"]["macro"]["auc_std"] == 0
    assert "without" not in one["differences_from"]["without"]
    gap = one["differences_from"]["without"]["teacher"]["macro"]
    assert gap["low"] <= gap["difference"] <= gap["high"]
    assert "kept_share" in one


def test_the_table_and_the_students_have_one_teacher(done):
    teachers = [path for path in (done[0] / "out" / "one" / "runs" / "teachers").iterdir() if path.is_dir()]
    targets = [path for path in teachers if any(path.glob("folds-*/targets.parquet"))]
    assert len(teachers) == 3  # two seeds, and one without ladders
    assert len(targets) == 1  # of one seed, for the students of both
    table = pl.read_parquet(next(targets[0].glob("folds-*/targets.parquet")))
    assert table["row"].n_unique() == table.height
    assert set(table["fold"].unique()) == {0, 1}


def test_what_a_student_takes_from_its_teacher_is_chosen_on_validation(done):
    one = done[1]["one"]
    tried = PLAN["rows"]["student"]["tries"]
    chosen = {name: value for name, value in one["rows"]["student"]["settings"].items() if name == "distil"}
    assert chosen in tried
    # A run of the same recipe is one run, so the choice can be looked up among those there are: all three
    # differ in nothing but the part `distil`.
    runs = [
        (
            recipe["distil"],
            json.loads((path.parent / "metrics.json").read_text())["valid"]["macro"]["pack"]["auc"],
        )
        for path in (done[0] / "out" / "one" / "runs").glob("*/recipe.json")
        if (recipe := json.loads(path.read_text())["recipe"])["seed"] == 0
        and recipe["paradigm"]["name"] == "plate"
        and recipe["tuning"]["epochs"] == 1
    ]
    assert len(runs) == 3
    best = max(runs, key=lambda run: run[1])[0]
    weight = 0.5 if chosen == {} else (chosen["distil"] or {}).get("weight")
    assert (best["weight"] if best else None) == weight


def test_domains_that_no_model_has_seen_are_judged_before_and_after_tuning(done):
    unseen = done[1]["one"]["unseen"]
    assert {*unseen} == {*PLAN["rows"]}
    for row in unseen.values():
        assert {*row} == {"c"}
        assert 0 <= row["c"]["general_auc_mean"] <= 1
        assert 0 <= row["c"]["tuned_auc_mean"] <= 1
        assert row["c"]["seconds_mean"] > 0


def test_a_row_that_does_not_exist_is_refused(done, monkeypatch):
    monkeypatch.setattr(compare, "__file__", str(done[0] / "compare.py"))
    with pytest.raises(RunError, match="no row nobody"):
        run(done[0], ("nobody",))

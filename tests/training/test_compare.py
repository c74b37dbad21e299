from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from rich.progress import Progress
from scipy.stats import ttest_rel

from service.contract.errors import RunError
from training import compare, figures
from training.compare import Comparison, merged
from training.plan import Plan

PLAN: dict[str, Any] = {
    "recipe": "plate_synthetic",
    "seeds": [0, 1],
    "joint": [{"epochs": 1, "lr": 1e-5}, {"epochs": 2, "lr": 1e-2}],
    "tuning": [{"epochs": 1}],
    "rows": {
        "mix": {"change": {"paradigm": {"name": "mix"}}},
        "plate": {"candidate": True},
        "user part": {
            "candidate": True,
            "joint_of": "plate",
            "change": {"paradigm": {"tunes": ["first_order"], "first_order": "user"}},
        },
    },
    "curves": {"curve": {"label": "x", "points": {"plate": 1, "user part": 10}}},
    "bars": {"all": ["mix", "plate"]},
    "sizes": ["plate", "user part"],
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base recipe that trains in a second, in the place of the shipped ones."""
    recipe = {
        "name": "plate-synthetic",
        "data": {"name": "synthetic", "domains": {"a": 2000, "b": 1000}, "users": 60, "items": 40},
        "dim": 4,
        "backbone": {"name": "deepfm", "hidden": [8]},
        "paradigm": {"name": "plate", "prompt_hidden": [8]},
    }
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "plate_synthetic.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(compare, "__file__", str(tmp_path / "compare.py"))
    return tmp_path


def run(folder: Path, plan: dict[str, Any] = PLAN) -> dict[str, Any]:
    with Progress(disable=True) as bars:
        return Comparison(
            Plan.model_validate(plan), folder / "out", folder / "data", processes=1, progress=bars
        )()


def test_settings_are_chosen_on_validation_and_every_seed_is_trained(small: Path) -> None:
    report = run(small)
    assert json.loads((small / "out" / "report.json").read_text()) == report
    folders = list((small / "out" / "runs").iterdir())
    recipes = [json.loads((folder / "recipe.json").read_text())["recipe"] for folder in folders]
    metrics_of = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    runs = list(zip(recipes, metrics_of, strict=True))
    for name in ("mix", "plate"):
        tried = {
            recipe["joint"]["lr"]: metrics["valid"]["macro"]["joint"]["auc"]
            for recipe, metrics in runs
            if recipe["paradigm"]["name"] == name and recipe["tuning"]["epochs"] == 0
        }
        assert set(tried) == {1e-5, 1e-2}
        assert report["rows"][name]["settings"]["joint"]["lr"] == max(tried, key=lambda lr: tried[lr])
    assert report["rows"]["user part"]["settings"]["joint"] == report["rows"]["plate"]["settings"]["joint"]
    assert report["tried_of_row"] == {name: {"joint": 2, "tuning": 1} for name in PLAN["rows"]}

    chosen = report["rows"]["mix"]["settings"]["joint"]["lr"]
    mixed = [(recipe, metrics) for recipe, metrics in runs if recipe["paradigm"]["name"] == "mix"]
    final = [
        metrics["domains"]["a"]["pack"]["auc"]
        for recipe, metrics in mixed
        if recipe["tuning"]["epochs"] and recipe["joint"]["lr"] == chosen
    ]
    assert len(final) == 2  # one a seed
    assert report["rows"]["mix"]["a"]["auc_mean"] == pytest.approx(sum(final) / 2)
    assert report["rows"]["mix"]["a"]["auc_std"] == pytest.approx(abs(final[0] - final[1]) / 2**0.5)
    best = max(("plate", "user part"), key=lambda name: report["rows"][name]["valid_macro_auc_mean"])
    assert report["chosen_on_validation"] == best

    text = figures.table(report)
    assert f"| **{best}** | " in text
    assert f" {report['rows']['mix']['macro']['auc_mean']:.4f} " in text
    drawn = figures.draw(report, small / "out")
    assert [path.name for path in drawn] == ["curve.png", "all.png", "pack-bytes.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_comparison_goes_on_with_the_runs_it_has(small: Path) -> None:
    def written() -> dict[Path, int]:
        found = (small / "out" / "runs").rglob("weights.safetensors")
        return {path: path.stat().st_mtime_ns for path in found}

    first = run(small)
    before = written()
    assert before
    assert run(small) == first
    assert written() == before


def test_a_search_goes_on_from_the_plan_s_settings_for_stages_that_a_row_has(small: Path) -> None:
    bounds = {"trials": 2, "lr": [1e-4, 1e-1], "l2": [1e-6, 1e-3], "epochs": [1, 2]}
    rows = {name: PLAN["rows"][name] for name in ("mix", "plate")}
    plan = {
        "recipe": "plate_synthetic",
        "seeds": [0, 1],
        "against": "mix",
        "pairs": {"do prompts help": [["plate", "mix"]]},
        "joint": [{"epochs": 1, "lr": 1e-3, "l2": 1e-5, "schedule": "linear"}],
        "tuning": [{"epochs": 0}, {"epochs": 1, "lr": 1e-3, "l2": 1e-5}],
        "search": {"joint": bounds, "tuning": bounds},
        "rows": rows,
    }
    report = run(small, plan)
    assert report["tried_of_row"] == {
        "mix": {"joint": 3, "tuning": 1},  # it has no stage over each domain
        "plate": {"joint": 3, "tuning": 4},
    }
    runs = [path.parent for path in (small / "out" / "runs").glob("*/recipe.json")]
    recipes = [json.loads((folder / "recipe.json").read_text())["recipe"] for folder in runs]
    assert {recipe["joint"]["schedule"] for recipe in recipes} == {"linear"}
    for name, row in report["rows"].items():
        reached = {
            recipe["joint"]["lr"]: json.loads((folder / "metrics.json").read_text())
            for folder, recipe in zip(runs, recipes, strict=True)
            if recipe["paradigm"]["name"] == name and recipe["tuning"]["epochs"] == 0 and recipe["seed"] == 0
        }
        aucs = {lr: metrics["valid"]["macro"]["joint"]["auc"] for lr, metrics in reached.items()}
        assert row["settings"]["joint"]["lr"] == max(aucs, key=lambda lr: aucs[lr])
        assert row["seconds"] > 0

    table = pl.read_parquet(small / "out" / "results.parquet")
    assert table.height == 2 * 2 * 3  # models, seeds, domains and macro
    whole = table.filter(domain="macro").sort("seed")
    aucs_of = {name: whole.filter(model=name)["auc"].to_list() for name in rows}
    assert report["rows"]["plate"]["macro"]["auc_mean"] == pytest.approx(sum(aucs_of["plate"]) / 2)
    (pair,) = report["pairs"]["do prompts help"]
    assert pair["difference"] == pytest.approx((sum(aucs_of["plate"]) - sum(aucs_of["mix"])) / 2)
    assert pair["p"] == pytest.approx(float(ttest_rel(aucs_of["plate"], aucs_of["mix"]).pvalue))
    assert report["differences_from"]["mix"]["plate"]["p_over_seeds"] == pair["p"]
    assert f"| plate | mix | {pair['difference']:+.4f} | {pair['p']:.3f} |" in figures.pairs(
        report, "do prompts help"
    )
    assert run(small, plan) == report


def test_merging_keeps_options_of_the_same_name_only() -> None:
    base = {"paradigm": {"name": "plate", "temperature": 1.0}, "joint": {"lr": 1}, "seed": 0}
    assert merged(base, {"paradigm": {"tunes": ["prompts"]}, "joint": {"l2": 2}}) == {
        "paradigm": {"name": "plate", "temperature": 1.0, "tunes": ["prompts"]},
        "joint": {"lr": 1, "l2": 2},
        "seed": 0,
    }
    assert merged(base, {"paradigm": {"name": "mix"}})["paradigm"] == {"name": "mix"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": {"a": {"joint_of": "b"}}}, "there is no row b"),
        ({"bars": {"x": ["nobody"]}}, "there is no row nobody"),
        ({"rows": {"mix": {"change": {"data": {"name": "douban"}}}}}, "other data"),
        ({"rows": {"a": {}, "b": {"joint_of": "a"}, "c": {"joint_of": "b"}}}, "searches for itself: c"),
        ({"seeds": []}, "seeds"),
        ({"seed": 1}, "seed"),
    ],
)
def test_a_wrong_plan_is_refused_by_place(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    plan = {**PLAN, "curves": {}, "bars": {}, "sizes": [], **change}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(RunError, match=says):
        Plan.load(tmp_path / "plan.yaml")


@pytest.mark.parametrize("path", sorted(Path("training/plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans_are_valid_and_say_how_to_run_them(path: Path) -> None:
    plan = Plan.load(path)
    assert (path.parent.parent / "recipes" / f"{plan.recipe}.yaml").exists()
    assert path.read_text().startswith(f"# python -m training compare training/plans/{path.name} ")

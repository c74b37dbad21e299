"""What scoring costs: models of the plan on few rows, and figures by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtest.bench_served import Size, _figures, bench, markdown, recipes, show
from service.contract.errors import RunError, UnknownOption
from tests.conftest import TINY

CHANGE = {key: TINY[key] for key in ("data", "dim", "backbone")}


def test_models_are_built_and_timed_and_what_cannot_be_is_left_out(tmp_path: Path) -> None:
    every = recipes("synthetic", CHANGE)
    models = {name: every[name] for name in ("PLATE, tune L, ratings", "Single", "Mix")}
    size, console = (
        Size(candidates=(5, 20), rounds=3, seconds=1e-3, rows=200),
        Console(record=True, width=250),
    )
    report = bench(size, models, tmp_path / "data", tmp_path / "out", console)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert [*report["models"]] == ["Single", "Mix"]
    assert report["left_out"] == {"PLATE, tune L, ratings": "the recipe has grades, and the data has none"}

    single, mix = report["models"].values()
    # By hand: 8 units of the first layer, a sum of 8 columns, its FM, its first-order part; of 4 bytes each.
    assert mix["item_bytes"] == 4 * (8 + 8 + 1 + 1)
    assert single["item_bytes"] == 0  # all of it is the domain's
    assert mix["pack_bytes"] == 4
    assert mix["parameters"] == single["parameters"] <= single["parameters_of_domain"]
    for found in (single, mix):
        assert found["max_abs_diff"] < 1e-5
        assert found["operators"] > 5
        for n, each in found["candidates"].items():
            assert 0 < each["engine_us"] < each["us"] == pytest.approx(int(n) * each["us_of_candidate"])
            assert each["ratio_low"] <= each["ratio"] <= each["ratio_high"]
    assert {each["ratio"] for each in mix["candidates"].values()} == {1}

    show(report, console)
    assert "left out: PLATE, tune L, ratings: the recipe has grades" in console.export_text()
    assert f"| {single['parameters']:,} | {single['pack_bytes']:,} | 0 |\n" in markdown(report)


def test_without_the_model_that_others_are_compared_with_there_is_nothing_to_report(tmp_path: Path) -> None:
    models = {"Mix": recipes("synthetic", CHANGE)["PLATE, tune L, ratings"]}
    with pytest.raises(RunError, match="grades"):
        bench(Size(rows=20), models, tmp_path / "data", tmp_path / "out", Console(record=True))


def test_a_ratio_is_taken_within_a_round() -> None:
    """By hand, of three rounds: the machine was half as fast in the second."""
    timed = {
        ("Mix", 10): np.array([[20e-6, 40e-6, 20e-6], [10e-6, 20e-6, 10e-6]]),
        ("PLE", 10): np.array([[30e-6, 80e-6, 50e-6], [15e-6, 40e-6, 30e-6]]),
    }
    found = _figures("PLE", timed, Size(candidates=(10,), rounds=3))["candidates"]["10"]
    assert found["us"] == pytest.approx(50)
    assert found["us_of_candidate"] == pytest.approx(5)
    assert found["engine_us"] == pytest.approx(30)
    # 1.5, 2 and 2.5: the median, and a tenth and nine tenths of the way between them.
    assert [found[f"ratio{end}"] for end in ("", "_low", "_high")] == pytest.approx([2, 1.6, 2.4])


def test_rows_are_the_comparisons() -> None:
    douban = recipes("douban")
    assert len(douban) == 33
    assert douban["STAR"].backbone.options["hidden"] == [16, 16]
    assert douban["STAR"].paradigm.model_dump() == {"name": "star"}
    assert douban["DCN, PLATE"].backbone.model_dump() == {"name": "dcn"}
    assert douban["PLATE, tune L, ratings"].grades is not None
    kuairand = recipes("kuairand")
    assert [*kuairand] == ["Single", "Mix", "Fine-tune all", "PLATE", "Shared bottom", "MMoE", "PLE", "STAR"]
    assert kuairand["PLE"].backbone.options["hidden"] == [64, 32]
    assert kuairand["PLE"].data.model_dump() == {"name": "kuairand", "history": 20}
    assert {each.joint.epochs for each in (*douban.values(), *kuairand.values())} == {1}
    with pytest.raises(UnknownOption, match="movielens_1m"):
        recipes("nowhere")

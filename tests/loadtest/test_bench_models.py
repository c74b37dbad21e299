"""Every paradigm of the comparison over HTTP, against a real Redis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench_models import Size, bench, compared, markdown, quick, show
from tests.conftest import TINY
from training.plan import Plan

PLAN = Plan.load(Path("training/plans/kuairand_models.yaml"))
CHANGE = {**{key: TINY[key] for key in ("data", "dim", "backbone")}, "joint": {"epochs": 1, "batch": 256}}


@pytest.mark.parametrize(
    "names",
    [["Mix", "PLE", "MI-DPG"], pytest.param([*PLAN.rows], marks=pytest.mark.cross)],
    ids=["some", "all"],
)
def test_every_models_answers_are_torchs(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = quick(tmp_path / "runs", tmp_path / "data", CHANGE)
    assert [*runs] == [*PLAN.rows]
    runs = {name: runs[name] for name in names}

    console = Console(record=True, width=200)
    size = Size(candidates=10, rounds=2, seconds=0.02)
    report = bench(size, runs, tmp_path / "data", tmp_path / "out", console)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert [*report["models"]] == [*runs]
    for found in report["models"].values():
        assert found["domains"].keys() == {"big", "mid", "small"}
        assert found["max_abs_diff"] < 1e-5
        for domain in found["domains"].values():
            assert domain["auc_http"] == pytest.approx(domain["auc_torch"], abs=1e-3)
        assert found["pack_bytes"] > 4 * found["parameters_of_domain"] * 0.1
        assert found["rps"] > 0
        assert 10 < found["core_us"] < 1e6
    assert report["models"]["Mix"]["ratio"] == 1

    show(report, console)
    assert "MI-DPG" in console.export_text()
    assert f"| {report['models']['PLE']['pack_bytes']:,.0f} |" in markdown(report)


def test_a_comparisons_runs_are_those_of_its_first_seed(tmp_path: Path) -> None:
    assert compared(tmp_path) == {}
    rows = {"Mix": {"runs": ["runs/a", "runs/b"]}, "PLE": {"runs": ["runs/c", "runs/d"]}}
    (tmp_path / "report.json").write_text(json.dumps({"rows": rows}))
    assert compared(tmp_path) == {"Mix": tmp_path / "runs/a", "PLE": tmp_path / "runs/c"}

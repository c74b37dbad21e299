"""Three models, one of them twice, over HTTP against a real Redis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtest import bench_csamp
from loadtest.bench_csamp import AGAIN, CSAMP, CTR_BERT, IDS, bench, markdown, show, train
from loadtest.bench_models import Size, _slower, _Timed
from tests.conftest import TINY

CHANGE = {**{key: TINY[key] for key in ("dim", "backbone")}, "joint": {"epochs": 1, "batch": 256}}


def test_ids_cost_the_same_with_csamp_and_without_and_a_language_model_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bench_csamp, "_model", lambda name: "tiny")
    runs = train(TINY["data"], tmp_path / "runs", tmp_path / "data", CHANGE)
    assert [*runs] == [IDS, CSAMP, CTR_BERT]

    console = Console(record=True, width=200)
    size = Size(candidates=20, rounds=3, seconds=0.05)
    report = bench(size, runs, tmp_path / "data", tmp_path / "out", console)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    models = report["models"]
    assert [*models] == [IDS, AGAIN, CSAMP, CTR_BERT]
    assert report["size"]["connections"] == 1
    for found in models.values():
        assert found["max_abs_diff"] < 1e-5
        assert 0 < found["p50_ms"] <= found["p99_ms"]
        assert found["answers"] >= 3
    assert models[IDS]["parameters"] == models[CSAMP]["parameters"] < models[CTR_BERT]["parameters"]
    assert models[IDS]["macro_auc_http"] == models[AGAIN]["macro_auc_http"] != models[CSAMP]["macro_auc_http"]
    for name, model in (("latency_ratio", CSAMP), ("noise", AGAIN), ("language_model_ratio", CTR_BERT)):
        assert report[name] == {share: models[model][f"{share}_ratio"] for share in ("p50", "p99")}
    assert models[IDS]["p50_ratio"] == [1, 1, 1]
    # Other work on the machine may come between, so this says little: that nobody reads texts but the last.
    assert report["latency_ratio"]["p50"][0] < 3 < report["language_model_ratio"]["p50"][0]

    show(report, console)
    assert CTR_BERT in console.export_text()
    assert f"| {models[CSAMP]['p50_ms']:.2f} | " in markdown(report)


def test_a_ratio_is_that_of_all_answers_and_its_interval_that_of_rounds() -> None:
    """By hand: of 1, 2, 3, 3, 4 ms and 1, 1, 1, 2, 2 ms the medians are 3 and 1."""
    one = _Timed(seconds=[np.array([1e-3, 2e-3, 3e-3]), np.array([3e-3, 4e-3])])
    other = _Timed(seconds=[np.array([1e-3, 1e-3, 1e-3]), np.array([2e-3, 2e-3])])
    assert one.within(0.5) == pytest.approx(3)
    found = _slower(one, other, 0.5)
    # Both rounds twice, the first twice, the second twice: 3 / 1, 2 / 1 and 3.5 / 2.
    assert found == pytest.approx([3, 1.75, 3])

"""A student and the same model without its teacher, over HTTP against a real Redis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench_models import Size
from loadtest.bench_student import AGAIN, STUDENT, WITHOUT, bench, train

# The domains of the recipe, since those that are left out would stay.
DOMAINS = {"feed": 400, "shop": 300, "ads": 300, "new": 300}
SOURCE = {"name": "synthetic", "domains": DOMAINS, "users": 30, "items": 20}
CHANGE = {
    "data": {"name": "text_vectors", "size": 4, "of": SOURCE},
    "dim": 4,
    "backbone": {"name": "deepfm", "hidden": [8]},
    "distil": {"teacher": {"data": {"of": SOURCE}, "paradigm": {"tower": [8], "every": 4}}},
}


def test_a_student_has_the_size_of_the_model_without_teacher_and_other_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = train(tmp_path / "runs", tmp_path / "data", CHANGE)
    size = Size(candidates=20, rounds=3, seconds=0.05)
    report = bench(size, runs, tmp_path / "data", tmp_path / "out", Console(record=True))
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    models = report["models"]
    assert [*models] == [WITHOUT, AGAIN, STUDENT]
    assert models[WITHOUT]["parameters"] == models[STUDENT]["parameters"]
    assert models[WITHOUT]["macro_auc_http"] == models[AGAIN]["macro_auc_http"]
    assert models[WITHOUT]["macro_auc_http"] != models[STUDENT]["macro_auc_http"]
    assert all(found["max_abs_diff"] < 1e-5 for found in models.values())
    assert report["latency_ratio"]["p50"] == models[STUDENT]["p50_ratio"]
    assert report["noise"]["p99"] == models[AGAIN]["p99_ratio"]

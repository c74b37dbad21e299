"""The whole house on the simulator, against a real Redis and over real HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from loadtest.__main__ import show
from loadtest.demo import DemoError, demo
from tests.conftest import TINY
from tests.training.test_distil import STUDENT


def test_every_answer_is_torchs_and_a_promotion_moves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    report = demo(tmp_path / "tiny.yaml", tmp_path / "demo-tiny")
    assert json.loads((tmp_path / "demo-tiny" / "report.json").read_text()) == report

    assert report["distilled"] is None
    assert set(report["domains"]) == {"big", "mid", "small"}
    for found in report["domains"].values():
        assert found["max_abs_diff"] < 1e-5
        assert found["auc_http"] == pytest.approx(found["auc_torch"], abs=1e-9)
        assert 0 < found["logloss_http"] < 1
    # The simulator's rows are split 80/10/10.
    assert sum(found["rows"] for found in report["domains"].values()) == pytest.approx(480, abs=20)
    assert report["requests"] > 100
    assert 0 < report["latency_p50_ms"] <= report["latency_p99_ms"]

    swap = report["swap"]
    assert swap["failed"] == 0
    assert swap["from"] != swap["to"]
    assert swap["scores_moved_by"] > 0
    assert swap["max_abs_diff"] < 1e-5

    console = Console(record=True, width=150)
    show(report, console)
    shown = console.export_text()
    assert re.search(rf"big .* {report['domains']['big']['auc_http']:.4f} ", shown)
    assert "0 failed" in shown


def test_a_student_is_shown_beside_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({**TINY, **STUDENT}))
    report = demo(tmp_path / "student.yaml", tmp_path / "demo-student")
    assert report["distilled"].keys() == {"teacher", "student", "without"}
    assert len(set(report["distilled"].values())) == 3
    # HTTP's is of the same rows and packs.
    assert report["distilled"]["student"] == pytest.approx(report["macro_auc_http"], abs=1e-9)
    assert report["swap"]["failed"] == 0
    console = Console(record=True, width=150)
    show(report, console)
    assert f"the student without its teacher {report['distilled']['without']:.4f}" in console.export_text()


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**TINY, "backbone": {"name": "nothing"}}))
    with pytest.raises(DemoError, match=r"python -m training fit .* ended with exit code 2"):
        demo(tmp_path / "bad.yaml", tmp_path / "demo-bad")

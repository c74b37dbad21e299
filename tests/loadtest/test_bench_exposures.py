"""The bench of the exposure log, with a tiny model over HTTP against a real Redis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtest.bench_exposures import AGAIN, OFF, ON, Size, _more, _Spent, assignment, bench, markdown, show
from loadtest.stage import Size as ModelSize

TINY = ModelSize(domains=2, items=200, users=100, rows=600, dim=4, hidden=(8, 4))


def test_the_report_has_costs_noise_and_as_many_rows_as_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    size = Size(candidates=(3, 20), rounds=2, seconds=0.05, connections=1, blocks=2, model=TINY)
    report = bench(size, tmp_path, Console(record=True))
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    assert [*report["candidates"]] == ["3", "20"]
    answers = 0
    for found in report["candidates"].values():
        assert [*found["us"]] == [OFF, AGAIN, ON]
        assert min(*found["us"].values(), *found["us_whole"].values(), *found["answers"].values()) > 0
        assert found["cost"]["low"] <= found["cost"]["share"] <= found["cost"]["high"]
        assert found["noise"]["low"] <= found["noise"]["share"] <= found["noise"]["high"]
        answers += found["answers"][ON]
    # The first round, which is to warm up, is in the log, too.
    assert report["log"]["rows"] > answers
    assert report["log"]["items"] > 3 * report["log"]["rows"]
    assert report["log"]["files"] >= 1
    assert 0 < report["assignment"]["us_low"] <= report["assignment"]["us"]
    shown = Console(record=True, width=200)
    show(report, shown)
    assert "are in the log" in shown.export_text()
    assert len(markdown(report).splitlines()) == 4


def test_a_cost_is_of_rounds_and_of_all_together() -> None:
    one, other = _Spent([0.0, 0.2, 0.6, 0.7], [10, 10, 10]), _Spent([5.0, 5.1, 5.3, 5.4], [10, 10, 10])
    assert one.microseconds.tolist() == pytest.approx([20_000, 40_000, 10_000])
    found = _more(one, other)
    assert found["share"] == pytest.approx(1.0)  # 2, 2 and 1 times as much
    assert found["low"] == pytest.approx(0.2)
    assert found["whole"] == pytest.approx(0.75)


def test_arms_are_found_in_a_time_that_is_one() -> None:
    found = assignment(1)
    assert np.isfinite([*found.values()]).all()
    assert found["us_low"] == found["us"] == found["us_high"] > 0

"""The benchmark of a GPU runs without one, and says what it promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loadtest import bench_gpu
from loadtest.gpu_stage import DTYPES, Size, ratio
from service.contract.errors import UnknownOption

SIZE = replace(
    Size.quick("cpu"),
    items=300,
    hidden=(16, 8),
    dim=8,
    rounds=1,
    seconds=0.02,
    mixes=6,
    resident=9,
    connections=2,
)


def test_all_parts_run_and_are_shown(tmp_path: Path) -> None:
    console = Console(quiet=True)
    report = bench_gpu.bench(SIZE, tmp_path, console, ["engine", "throughput", "mixes", "memory", "http"])
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    for dtype in DTYPES:
        for form in ("rows", "fields"):
            assert report["engine"][f"{dtype}.{form}_ms"] > 0
            assert report["engine_plain"][f"{dtype}.{form}_ratio"] > 0
        assert report["mixes"][dtype]["max_probability_difference"] < 1e-5
        assert report["mixes"][dtype]["to_float32"] < 2e-3
        assert report["memory"][dtype]["domains"] == SIZE.resident
        assert {*report["throughput"][dtype]} == {"100.1", "100.10"}
    assert report["http"]["mixed_1"]["100.10"]["rps"] > 0
    shown = Console(record=True, quiet=True, width=200)
    bench_gpu.show(report, shown)
    assert "| float16 | rows |" in bench_gpu.markdown(report)
    again = bench_gpu.bench(SIZE, tmp_path, console, ["memory"])
    assert again["engine"] == report["engine"]  # what is not measured again is kept


def test_a_part_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="no part speed"):
        bench_gpu.bench(SIZE, tmp_path, Console(quiet=True), ["speed"])


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0

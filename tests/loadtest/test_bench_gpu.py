"""The benchmark of a GPU runs without one, and says what it promises."""

from __future__ import annotations

import io
import json
import socket
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from loadtest import bench_gpu
from loadtest.closed import Closed
from loadtest.fleet import BenchError
from loadtest.gpu_stage import DTYPES, Ground, Size, interleaved, ratio
from loadtest.server import ServerError, service
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
    parts = ["engine", "engine_plain", "throughput", "mixes", "memory", "http"]
    report = bench_gpu.bench(SIZE, tmp_path, console, parts)
    assert bench_gpu.failed(report) == {}
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


def test_a_part_that_fails_says_why_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(ground: Ground) -> dict[str, Any]:
        assert 0 < ground.share(1) - time.perf_counter() < SIZE.whole_seconds
        raise RuntimeError("the device fell [off] the bus")

    parts = {"engine": fails, "memory": lambda ground: {dtype: {"domains": 3} for dtype in DTYPES}}
    monkeypatch.setattr(bench_gpu, "PARTS", parts)
    monkeypatch.setattr(bench_gpu, "stage", lambda size, folder: Ground(size, cast(Any, None), folder))
    said = Console(record=True, file=io.StringIO(), width=200)
    report = bench_gpu.bench(SIZE, tmp_path, said)
    assert bench_gpu.failed(report) == {"engine": "RuntimeError: the device fell [off] the bus"}
    assert json.loads((tmp_path / "report.json").read_text())["memory"]["float16"] == {"domains": 3}
    assert "test_bench_gpu.py" in said.export_text()
    shown = Console(record=True, file=io.StringIO(), width=200)
    bench_gpu.show(report, shown)
    assert "engine failed: RuntimeError: the device fell [off] the bus" in shown.export_text()


def test_no_round_begins_when_the_time_is_over_but_the_first() -> None:
    asked = {"a": lambda: 1.0, "b": lambda: 2.0}
    assert interleaved(asked, 3) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert interleaved(asked, 3, time.perf_counter()) == {"a": [1.0], "b": [2.0]}


def test_a_service_that_ends_is_quoted(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"exit code 2; \S+log ends with\n"),
        service(tmp_path / "nothing", f"directory:{tmp_path}", tmp_path / "log"),
    ):
        pass


def test_a_client_whose_answer_does_not_come_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.closed._PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with closing(Closed(port, 2)) as client, pytest.raises(BenchError, match="2 requests have no answer"):
            client.run([b"GET / HTTP/1.1\r\n\r\n"], 0.01)


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0

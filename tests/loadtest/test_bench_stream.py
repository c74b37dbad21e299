"""The benchmark of streamed rows, on few of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest import bench_stream as module
from loadtest.bench_stream import Size, StreamError, bench, markdown, peak_mb, recipe, show

SIZE = Size(rows=(2_000, 4_000), in_memory=2_000, raced=3_000, rounds=1, users=50, items=40, part=700)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, which takes less long."""

    def child(what: str, rows: int, size: Size, folder: Path, cores: int = 2) -> Any:
        task = {"what": what, "rows": rows, "size": asdict(size), "folder": str(folder), "cores": cores}
        return json.loads(json.dumps(module.measure(json.loads(json.dumps(task)))))

    monkeypatch.setattr(module, "_child", child)
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


@pytest.mark.usefixtures("here")
def test_the_report_has_its_shape_and_one_part_leaves_the_others_figures(tmp_path: Path) -> None:
    quiet = Console(file=StringIO())
    first = bench(SIZE, tmp_path, quiet)
    assert json.loads((tmp_path / "report.json").read_text()) == first
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"], "data stayed"
    for cores in ("1", "2"):
        race = first["race"][cores]
        assert race["rows"] == pytest.approx(3_000, rel=0.1)
        assert race["ratio"] == pytest.approx(race["rows_per_s"]["stream"] / race["rows_per_s"]["memory"])
    few, more = first["runs"]
    assert (few["rows"], more["rows"], more["memory"]) == (2_000, 4_000, None)
    assert few["stream"]["rows"] == few["memory"]["rows"] == pytest.approx(2_000, rel=0.1)
    for found in (few["stream"], few["memory"], more["stream"]):
        assert found["rows_per_s"] > 0
        assert 50 < found["before_mb"] <= found["peak_mb"]
        assert 0 < found["auc"] < 1
    assert few["prepare"]["peak_mb"] > 50
    assert few["prepare"]["disk_mb"] > 0

    again = bench(SIZE, tmp_path, quiet, ["race"])
    assert again["runs"] == first["runs"]

    shown = StringIO()
    show(first, Console(file=shown, width=140))
    assert "in memory" in shown.getvalue()
    assert f"{more['stream']['rows']:,}" in shown.getvalue()
    assert len(markdown(first).splitlines()) == (2 + 3) + 1 + (2 + 2)


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"race of 1 rows: .*held_out: "):
        bench(Size(raced=1), tmp_path, Console(file=StringIO()), ["race"])


def test_the_peak_is_what_the_process_has_had() -> None:
    before = peak_mb()
    held = bytearray(200_000_000)
    assert peak_mb() >= before
    assert peak_mb() > 200
    assert held


def test_held_out_rows_are_few_however_many_there_are() -> None:
    for rows in (1_000, 1_000_000, 100_000_000):
        options = recipe(rows, SIZE).data.options
        every = sum(options["domains"].values())
        assert every * (1 - 2 * options["held_out"]) == pytest.approx(rows, rel=0.01)
        assert every * options["held_out"] <= 50_001

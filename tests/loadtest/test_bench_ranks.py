"""Two ranks beside one process, in the benchmark's own processes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench_ranks import Team, bench, show
from loadtest.bench_training import recipe_for
from loadtest.rivals.rival import RivalError
from tests.conftest import TINY
from training.recipe import Choice


def test_the_report_has_both_and_leaves_the_file_s_other_figures(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    out.write_text('{"rows_per_s": {"mdctr": 1.0}}')
    recipe = recipe_for("synthetic").model_copy(update={"data": Choice.model_validate(TINY["data"])})
    report = bench(recipe, out, data=data_root, size=2, rounds=2)
    assert json.loads(out.read_text()) == {"rows_per_s": {"mdctr": 1.0}, "ranks": report}
    assert report["ratio"] > 0
    assert report["ratio_with_validation"] > 0
    assert [len(report[f"peak_mb_{size}"]) for size in (1, 2)] == [1, 2]
    assert all(peak > 50 for size in (1, 2) for peak in report[f"peak_mb_{size}"])
    assert (report["rows"], report["processes"], report["batch"], report["rounds"]) == (3840, 2, 8192, 2)

    shown = StringIO()
    show(report, Console(file=shown, width=120))
    assert f"2 x 8192: {report['rows_per_s_2']:,.0f} rows/s" in shown.getvalue()


def test_ranks_that_do_not_start_say_why(tmp_path: Path) -> None:
    team = Team(1, tmp_path / "no.json")
    with pytest.raises(RivalError, match="1 ranks ended: FileNotFoundError"):
        team.round()
    team.close()

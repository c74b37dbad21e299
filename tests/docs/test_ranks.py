"""What the page on training at size says of several processes is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

from loadtest.bench_ranks import markdown


def test_the_table_of_several_processes_is_its_reports() -> None:
    reports = json.loads(Path("docs/figures/bench-ranks.json").read_text())
    assert markdown(reports) in Path("docs/training.md").read_text()
    assert all(report["ratio"] >= 1.3 for report in reports)

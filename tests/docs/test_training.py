"""What the page on training at size says was measured is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

from loadtest.bench_stream import markdown

PAGE = Path("docs/training.md")
REPORT = Path("docs/figures/bench-stream.json")


def test_the_table_of_streamed_rows_is_its_reports() -> None:
    assert markdown(json.loads(REPORT.read_text())) in PAGE.read_text()


def test_what_the_text_says_of_streamed_rows_is_in_the_report() -> None:
    page = " ".join(PAGE.read_text().split())
    report = json.loads(REPORT.read_text())
    most = max(report["runs"], key=lambda found: found["rows"])
    least = min(report["runs"], key=lambda found: found["rows"])
    assert most["rows"] == 100_000_000
    assert report["race"]["2"]["ratio"] >= 0.8
    more = most["stream"]["peak_mb"] - least["stream"]["peak_mb"]
    assert more < 200
    for text in (
        f"{most['stream']['peak_mb']:,.0f} MB at the most, of which {most['stream']['before_mb']:,.0f} MB",
        f"reaches {report['race']['2']['ratio']:.2f} of its speed in memory",
    ):
        assert text in page, text

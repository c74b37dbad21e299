"""What the page says the exposure log costs is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

from loadtest.bench_exposures import markdown

PAGE = Path("docs/exposures.md")


def test_the_table_is_the_reports() -> None:
    report = json.loads(Path("docs/figures/bench-exposures.json").read_text())
    page = PAGE.read_text()
    assert markdown(report) in page
    assert f"{report['log']['rows']:,} answers" in page
    assert f"{report['assignment']['us']:.1f} us" in page

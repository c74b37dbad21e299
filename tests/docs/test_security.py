"""What the page says that damage did is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

from service.server import _BETWEEN_LOOKS
from tests.fuzz.__main__ import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_the_table_is_the_reports() -> None:
    report = json.loads((ROOT / "docs" / "figures" / "fuzz.json").read_text())
    assert table(report) in PAGE
    assert f"{report['minutes']:g} minutes" in PAGE
    for name, run in report["targets"].items():
        assert (run["crashes"], run["faults"], run["hangs"]) == (0, 0, 0), name


def test_files_are_looked_at_as_often_as_it_says() -> None:
    assert f"every {_BETWEEN_LOOKS / 10:g} seconds" in PAGE


def test_every_test_that_it_names_is_there() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "test" in line.rpartition("| ")[2]]
    names = [name for row in rows for name in row.split("`") if name.startswith(("test", "experiments/"))]
    assert len(names) > 10
    for name in names:
        places = [ROOT / name, ROOT / "tests" / "service" / name]
        assert any(place.exists() for place in places), name

"""What the page on drift says was simulated is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.simulate_drift import failed, needed, sheet, silence

PAGE = Path("docs/drift.md")
REPORT = Path("docs/figures/simulate-drift.json")


def test_the_table_is_its_reports() -> None:
    assert sheet(json.loads(REPORT.read_text())).markdown() in PAGE.read_text()


def test_no_alarm_came_that_should_not_and_none_was_late() -> None:
    report = json.loads(REPORT.read_text())
    assert not failed(report)
    assert report["silent"]["weeks"] >= 1
    assert silence(report) in " ".join(PAGE.read_text().split())


def test_every_kind_was_planted_at_night_where_traffic_was_enough() -> None:
    report = json.loads(REPORT.read_text())
    alarms = {each["alarm"] for each in report["planted"] if each["quiet"] and each["enough"]}
    assert alarms == {"MdctrCalibrationOff", "MdctrClicksLost", "MdctrScoresMoved", "MdctrUnknownValues"}


@pytest.mark.parametrize(("shift", "clicks"), [(0.27385, "3,752"), (0.37713, "1,359"), (0.5, "626")])
def test_the_formula_gives_what_the_page_says(shift: float, clicks: str) -> None:
    # exp(-0.32) - 1 and exp(0.32) - 1, by hand.
    assert f"{needed(shift):,.0f}" == clicks
    assert clicks in PAGE.read_text()

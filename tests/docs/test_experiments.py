"""What the page on reports says was simulated is what the report beside it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openfeature import api

from loadtest import simulate_http
from loadtest.simulate_experiments import markdown
from tests.docs.blocks import blocks

PAGE = Path("docs/experiment-report.md")
REPORT = Path("docs/figures/simulate-experiments.json")


def test_the_table_is_its_reports() -> None:
    assert markdown(json.loads(REPORT.read_text())) in PAGE.read_text()


def test_what_was_simulated_is_what_was_promised() -> None:
    aa, ab, srm = (json.loads(REPORT.read_text())[part] for part in ("aa", "ab", "srm"))
    assert aa["runs"] == 1000
    assert aa["false_positive_rate_always_valid"] <= 0.05
    assert aa["false_positive_rate_fixed"] == pytest.approx(0.05, abs=0.015)
    assert ab["power"] == pytest.approx(ab["power_predicted"], abs=0.04)
    assert srm["flagged_aa_runs"] <= 2
    assert srm["flagged_49_51"] > 0.99
    assert srm["p_of_exactly_49_51"] < 0.001


def test_trials_end_right() -> None:
    canary = json.loads(REPORT.read_text())["canary"]
    assert canary["worlds"] == 100
    assert canary["right"] >= 95
    assert (canary["lift"], canary["units"]) == (0.03, 200_000)
    page = " ".join(Path("docs/canary.md").read_text().split())
    for text in (
        f"in {canary['right']} of {canary['worlds']} worlds",
        f"{canary['units']:,} users",
        f"promoted, as a rule after {canary['days_to_promote']:g} days",
        f"taken back, as a rule after {canary['days_to_take_back']:g} days",
    ):
        assert text in page, text


def test_what_the_text_says_of_the_simulation_is_in_the_report() -> None:
    page = " ".join(PAGE.read_text().split())
    report = json.loads(REPORT.read_text())
    aa, ab, users = (report[part] for part in ("aa", "ab", "users"))
    more, units = ab["always_valid"]["units_of_an_arm"], ab["units_of_an_arm"]
    for text in (
        f"click rate of {users['click_rate_mean']:.4f}",
        f"a deviation by unit of {users['deviation_by_unit']:.4f}",
        f"{units:,} units an arm",
        f"{more:,} units an arm, {more / units:.2f} times",
        f"planned to find {100 * aa['planned_lift']:.1f} %",
    ):
        assert text in page, text


def test_worlds_over_http_ended_right() -> None:
    http = json.loads(REPORT.read_text())["canary"]["http"]
    assert simulate_http.markdown(http) in Path("docs/canary.md").read_text()
    assert (http["worlds"], http["right"]) == (3, 3)
    better, worse, loud = http["each"]
    assert better["true_lift"] == pytest.approx(0.03, abs=0.005)
    assert worse["true_lift"] == pytest.approx(-0.03, abs=0.005)
    assert loud["true_lift"] == 0
    assert [each["decision"] for each in http["each"]] == ["promoted", "taken back", "stopped"]
    assert [each["new_has"] for each in http["each"]] == [1, 0, 0]
    assert all(each["recorded"] and each["units"] <= 200_000 for each in http["each"])
    assert sum(each["seconds"] for each in http["each"]) < 600
    assert max(each["true_lift_se"] for each in http["each"]) < 0.001


def test_the_flags_of_the_page_are_its_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = [*blocks(Path("docs/experiments.md"))]
    [text] = [block.text for block in page if block.language == "json"]
    whole = json.loads(text)
    whole["layers"]["ranking"]["experiments"][0]["ramp"] = []  # all of it, and now
    del whole["layers"]["ranking"]["experiments"][0]["stop"]
    (tmp_path / "experiments.json").write_text(json.dumps(whole))
    monkeypatch.chdir(tmp_path)
    [code] = [block.text for block in page if block.language == "python"]
    for unit in range(60):
        exec(code.replace('"42"', f'"{unit}"'), {})
    seen = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert seen.keys() == {"a", "b"}
    assert seen["b"] == ["TARGETING_MATCH", "b"]
    api.clear_providers()

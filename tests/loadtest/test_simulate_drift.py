"""The simulated week against calculations by hand, and a short run through promtool."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import promtool
from loadtest.drift_world import DAY, FIELDS, RATES, STEP, DriftWorld, Shift
from loadtest.promtool import PromtoolError
from loadtest.simulate_drift import failed, needed, schedule, sheet

HOURS = 3600 // STEP


@pytest.fixture(scope="module")
def calm() -> DriftWorld:
    return DriftWorld(3, steps=DAY)


def total(world: DriftWorld, name: str, **labels: str) -> float:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return float(world.added[f"{name}{{{inner}}}"].sum())


def test_a_day_has_the_requests_that_it_should(calm: DriftWorld) -> None:
    # The cosine of the day adds up to nothing; that of the week is at its height.
    requests = total(calm, "mdctr_requests_total", domain="d0", status="200")
    assert requests == pytest.approx(50 * 86400 * 1.15, rel=0.03)
    assert total(calm, "mdctr_shown_total", domain="d0") == 10 * requests
    assert total(calm, "mdctr_values_total", field="item.id") == pytest.approx(
        100 * sum(total(calm, "mdctr_requests_total", domain=each, status="200") for each in RATES)
    )


def test_clicks_are_fewer_than_predicted_and_come_later(calm: DriftWorld) -> None:
    clicks, predicted = (
        calm.added[f'{name}{{domain="d0"}}']
        for name in ("mdctr_clicked_total", "mdctr_shown_probability_total")
    )
    # All items alike, what is looked at is the mean of 1 / (1 + 0.15 k), 0.633; the first are the best.
    assert 0.633 < clicks.sum() / predicted.sum() < 0.8
    assert clicks[0] < 0.7 * clicks[20]


def test_scores_are_those_of_every_fourth_request(calm: DriftWorld) -> None:
    requests = total(calm, "mdctr_requests_total", domain="d0", status="200")
    assert total(calm, "mdctr_scores_count", domain="d0") == pytest.approx(requests / 4, abs=2)
    assert total(calm, "mdctr_scores_bucket", domain="d0", le="+Inf") == total(
        calm, "mdctr_scores_count", domain="d0"
    )


def test_a_restart_begins_every_counter_anew() -> None:
    world = DriftWorld(3, steps=DAY + 2)
    assert all(DAY <= at <= DAY + 2 for at in world.restarts)
    for name, values in world.counters().items():
        falls = np.flatnonzero(np.diff(values) < 0) + 1
        assert set(falls) <= set(world.restarts), name


def test_shifts_do_what_they_are_named_after(calm: DriftWorld) -> None:
    begin = DAY // 2
    there = slice(begin, begin + 30)

    def changed(shift: Shift, name: str) -> float:
        found = DriftWorld(3, [shift], steps=DAY).added[name][there].sum()
        return float(found / calm.added[name][there].sum())

    predicted, clicked = 'mdctr_shown_probability_total{domain="d0"}', 'mdctr_clicked_total{domain="d0"}'
    up = Shift("logits", begin, domain="d0", size=0.4)
    assert 1 / changed(up, predicted) - 1 == pytest.approx(-calm.moved("d0", 0.4), rel=0.1)
    assert changed(up, clicked) == pytest.approx(1, abs=0.03)
    assert changed(Shift("lost", begin, size=0.5), clicked) == pytest.approx(0.5, abs=0.03)
    defaults = Shift("defaults", begin, domain="d0")
    assert changed(defaults, clicked) == pytest.approx(1, abs=0.03)  # the order of a user's items stays
    assert changed(defaults, 'mdctr_scores_bucket{domain="d0",le="0.01"}') < 0.1  # no score is extreme
    unknown = Shift("unknown", begin, size=0.5)
    share = FIELDS["user.age"][1]
    assert changed(unknown, 'mdctr_unknown_values_total{field="user.age"}') == pytest.approx(
        0.5 / share, rel=0.5
    )


def test_every_kind_goes_wrong_at_night_once_and_twice_by_day() -> None:
    planned = schedule(100, 7)
    assert len(planned) == 36
    night = [says for says, shift in planned if shift.start % DAY < 6 * HOURS]
    assert len(night) == 12
    for says in night:
        assert sum(each == says for each, _ in planned) == 3 * night.count(says)
    starts = [shift.start for _, shift in planned]
    assert min(starts) >= DAY
    assert min(np.diff(starts)) > 65 * 60 / STEP


def test_a_larger_shift_needs_less_traffic() -> None:
    # By hand: 1.5 (6.64 / 0.325)².
    assert needed(0.5) == pytest.approx(626.1, abs=0.1)
    assert needed(0.3) > needed(0.4)


def outcome(seconds: int | None, *, enough: bool = True) -> dict[str, object]:
    says, alarm = "half of the clicks lost", "MdctrClicksLost"
    return {
        "says": says,
        "alarm": alarm,
        "enough": enough,
        "seconds": seconds,
        "quiet": True,
        "clicks_in_5m": 9,
    }


def test_a_late_alarm_is_a_failure_and_so_is_one_for_nothing() -> None:
    well = {"silent": {"alarms": []}, "planted": [outcome(300), outcome(None, enough=False)]}
    assert not failed(well)
    assert failed({**well, "planted": [outcome(330)]})
    assert failed({**well, "planted": [outcome(None)]})
    assert failed({**well, "silent": {"alarms": [{"alarm": "MdctrClicksLost"}]}})
    lines = sheet(well).lines
    assert [line[4] for line in lines] == ["1 of 1", "0 of 1"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_says_what_fires_and_when(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "groups: [{name: a, rules: [{alert: High, expr: 'a > 2', labels: {severity: critical}}]}]"
    )
    series: dict[str, Any] = {'a{b="c"}': np.arange(5.0), "d": "1x4"}
    path = tmp_path / "test.yml"
    promtool.write(path, [rules], series, step=30, moments=[60, 90, 120])
    found = promtool.firing(path)
    assert [(each.seconds, each.name, each.labels["b"]) for each in found] == [
        (90, "High", "c"),
        (120, "High", "c"),
    ]
    promtool.write(path, [rules], series, step=30, moments=[60])
    assert promtool.firing(path) == []
    promtool.write(path, [rules], series, step=30, moments=[60, 120], since=60)
    assert [each.seconds for each in promtool.firing(path)] == [120]
    rules.write_text("groups: [{name: a, rules: [{alert: High, expr: 'a >'}]}]")
    with pytest.raises(PromtoolError, match="promtool"):
        promtool.firing(path)


def test_without_promtool_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PromtoolError, match="comes with Prometheus"):
        promtool.firing(tmp_path / "test.yml")

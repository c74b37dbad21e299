"""The simulator against its own formulas, and a small run of all kinds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtest import simulate_canary
from loadtest.simulate_experiments import IN_PROCESS, Size, markdown, simulate
from loadtest.users import Users
from service.experiments import statistics


def test_users_click_as_they_are() -> None:
    """Moments of the log-normal and the binomial by hand, where all users click alike."""
    users = Users(click_spread=0.0, together=0.0)
    clicks, impressions = users.clicks(np.random.default_rng(1), 200_000, 3, lift=0.5)
    assert clicks.shape == (3, 200_000)
    assert (np.diff(clicks, axis=0) >= 0).all()
    mean = 2 * np.exp(0.8**2 / 2)
    assert impressions.mean(1) == pytest.approx(mean * np.arange(1, 4), rel=0.01)
    assert clicks.sum(1) / impressions.sum(1) == pytest.approx(0.12, rel=0.01)
    variance = 3 * mean + 9 * 4 * (np.exp(2 * 0.8**2) - np.exp(0.8**2))
    assert impressions[-1].var() == pytest.approx(variance, rel=0.05)
    rate = statistics.ratio(clicks[-1], impressions[-1])  # then impressions are independent
    assert rate.se == pytest.approx(np.sqrt(0.12 * 0.88 / impressions[-1].sum()), rel=0.02)


def test_days_may_be_drawn_together() -> None:
    users = Users()
    daily = users.clicks(np.random.default_rng(1), 100_000, 4)
    at_once = users.clicks(np.random.default_rng(2), 100_000, 4, every=2)
    for one, other in zip(daily, at_once, strict=True):
        assert other.shape == (2, 100_000)
        assert one[1::2].mean(1) == pytest.approx(other.mean(1), rel=0.03)
        assert one[1::2].std(1) == pytest.approx(other.std(1), rel=0.1)


def test_a_small_run_of_all_kinds(tmp_path: Path) -> None:
    size = Size(runs=60, long_runs=20, units=3000, lift=0.1, worlds=3)
    report = simulate(size, tmp_path, Console(file=io.StringIO()), [IN_PROCESS])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    aa, ab, srm = (report[part] for part in ("aa", "ab", "srm"))
    assert aa["false_positive_rate_always_valid"] <= 0.1
    assert aa["false_positive_rate_fixed"] <= aa["false_positive_rate_fixed_peeking"]
    assert ab["power"] == pytest.approx(ab["power_predicted"], abs=0.2)
    assert ab["always_valid"]["power"] >= ab["always_valid"]["power_last_day"]
    assert ab["always_valid"]["units_of_an_arm"] > 1.5 * ab["units_of_an_arm"]
    assert srm["flagged_49_51"] > 0.9
    assert srm["p_of_exactly_49_51"] < 1e-9
    assert srm["flagged_aa_runs"] <= 2
    assert report["canary"]["right"] == report["canary"]["worlds"] == 3
    assert markdown(report).count("\n") == 11


def test_a_trial_of_what_is_far_worse_ends_in_its_first_steps() -> None:
    what, days = simulate_canary.trial(np.random.default_rng(2), Users(), 50_000, -0.5)
    assert what == "take back"
    assert days <= 2
    assert simulate_canary.trial(np.random.default_rng(2), Users(), 50_000, 0.5) == ("promote", 3)

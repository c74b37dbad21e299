"""What follows for packs on trial, and how the document changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from service.experiments import canary
from service.experiments.decision import decide
from service.experiments.document import CANARY, Experiment, ExperimentsError, Trial, parse
from tests.service.experiments.documents import document, experiment
from tests.service.experiments.measured import measured

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
TRIAL = Trial(
    bundle="tiny-00000000",
    against={"books": "0" * 16},
    shares=(0.01, 0.25),
    hold_seconds=3600,
    margin=0.1,
    until=BEGIN + timedelta(days=10),
)
DECLARED = canary.declared(
    {"books": "1" * 16}, [{"metric": "error_rate", "max": 0.02, "action": "stop"}], TRIAL, BEGIN
)
HOUR = 3600.0


def read(whole: dict[str, Any]) -> Experiment:
    (found,) = parse(json.dumps(whole).encode(), canary=True).layers[CANARY].experiments
    return found


def clicks(rate: float) -> Any:
    """Of 2,000 units with ten impressions each; some have twice as many as others."""
    return rate * 10 * (1 + 0.5 * (-1.0) ** np.arange(2000))


def what(trial: Experiment, hours: float, new: float | None = 0.1, **changes: Any) -> str:
    arms = {}
    if new is not None:
        arms = {"old": measured(clicks=clicks(0.1)), "new": measured(clicks=clicks(new), **changes)}
    return decide(trial, TRIAL, arms, BEGIN.timestamp() + hours * HOUR).what


def test_a_trial_goes_through_its_steps() -> None:
    first = canary.begun(None, DECLARED)
    trial = read(first)
    assert [step.share for step in trial.ramp] == [0.02]
    assert what(trial, 0.5) == "wait"
    assert what(trial, 1.0) == "next"
    assert what(trial, 5.0, new=None) == "wait"  # nobody has seen it yet
    assert what(trial, 240.0, new=None) == "take back"
    second = canary.moved_on(first, trial, TRIAL, BEGIN.timestamp() + HOUR)
    trial = read(second)
    assert [step.share for step in trial.ramp] == [0.02, 0.5]
    assert what(trial, 1.5) == "wait"
    assert what(trial, 2.0) == "promote"
    assert what(trial, 2.0, new=0.2) == "promote"
    # Six per cent fewer clicks: neither a loss for certain nor certainly no loss of ten per cent.
    wide = {"old": measured(200, clicks=clicks(0.1)[:200]), "new": measured(200, clicks=clicks(0.094)[:200])}
    for hours, expected in ((2.0, "wait"), (239.9, "wait"), (240.0, "take back")):
        assert decide(trial, TRIAL, wide, BEGIN.timestamp() + hours * HOUR).what == expected
    assert canary.ended(second, trial)["layers"] == {CANARY: {"experiments": []}}


@pytest.mark.parametrize(
    ("arm", "why"),
    [({"new": 0.05}, "ctr_lift"), ({"failed": np.arange(2000) % 2}, "error_rate")],
)
def test_what_breaks_a_guardrail_is_taken_back_at_any_moment(arm, why) -> None:
    trial = read(canary.begun(None, DECLARED))
    assert what(trial, 0.0, **arm) == "take back"
    arms = {
        "old": measured(clicks=clicks(0.1)),
        "new": measured(clicks=clicks(arm.get("new", 0.1)), failed=arm.get("failed")),
    }
    assert decide(trial, TRIAL, arms, BEGIN.timestamp()).why.startswith(f"{why} is ")


def test_each_unit_of_a_trial_keeps_its_pack_and_as_many_have_the_old_one() -> None:
    first = canary.begun(document([experiment("x")]), DECLARED)
    assert first["layers"].keys() == {"l0", CANARY}
    trial = read(first)
    assert trial.edges == ((0.5, 1.0), ("new", "old"))
    assert trial.control == "old"
    assert trial.arms["new"].version == {"books": "1" * 16}
    assert trial.unit == "user"


def test_there_is_one_trial_at_a_time() -> None:
    other = {**DECLARED, "name": "canary-other"}
    with pytest.raises(ExperimentsError, match="canary-20260101-000000 is under way in books"):
        read(canary.begun(canary.begun(None, DECLARED), other))


def test_an_arm_is_stopped_and_all_else_stays() -> None:
    whole = document([experiment("x"), experiment("y", slice=[0.5, 1])], holdout=0.1)
    whole["layers"]["l0"]["experiments"][0]["slice"] = [0, 0.5]
    (one, _) = parse(json.dumps(whole).encode()).layers["l0"].experiments
    after = canary.stopped(whole, one, "b")
    assert after["layers"]["l0"]["experiments"][0]["arms"]["b"].pop("stopped") is True
    assert after == whole

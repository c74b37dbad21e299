"""Guardrails: which bounds are broken for certain, and how seldom one is that holds."""

from __future__ import annotations

import numpy as np
import pytest

from service.experiments.document import Guardrail
from service.experiments.guardrail import Measured, beyond, broken, enough, judge, latencies
from service.experiments.outcomes import outcomes
from tests.service.experiments.documents import experiment, read
from tests.service.experiments.measured import measured


def rail(metric: str, **bound) -> Guardrail:
    return Guardrail.model_validate({"metric": metric, "action": "stop", **bound})


def half(units: int, value: float) -> np.ndarray:
    """A value for one unit of two, none for the others."""
    return np.arange(units) % 2 * value


def test_an_interval_is_the_formulas() -> None:
    """0.1 clicks an impression; each unit has 0 or 2 clicks of 10, so the deviation by unit is 0.1.

    By hand, for alpha 0.05 and a bound of 0.2: planned se = 0.02 / (1.95996 + 0.84162) = 0.0071389, the
    mixture solves log((1 + x) / 0.0025) = x there: x = 8.2113, so it is 0.0204568; se = 0.1 / sqrt(2000) =
    0.0022366 (with n - 1), x = 83.656, reach = sqrt((1 + 1 / 83.656) * log(84.656 / 0.0025)) = 3.2488.
    """
    found = judge(rail("ctr", min=0.2), measured(clicks=half(2000, 2)), measured(), 0.05)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.high - 0.1 == pytest.approx(0.0022366 * 3.2488, rel=1e-3)
    assert found.broken
    close = judge(rail("ctr", min=0.105), measured(clicks=half(2000, 2)), measured(), 0.05)
    assert close is not None
    assert not close.broken


@pytest.mark.parametrize(
    ("guardrail", "arm", "breaks"),
    [
        (rail("ctr", max=0.05), measured(clicks=half(2000, 2)), True),
        (rail("ctr", max=0.2), measured(clicks=half(2000, 2)), False),
        (rail("ctr", min=0.05), measured(clicks=np.zeros(2000)), True),  # nothing is clicked at all
        (rail("error_rate", max=0.01), measured(failed=half(2000, 1)), True),
        (rail("error_rate", max=0.01), measured(failed=10 * np.ones(2000)), True),  # everything fails
        (rail("error_rate", max=0.01), measured(), False),
        (rail("error_rate", max=0.06), measured(failed=half(2000, 1)), False),
        (rail("calibration", min=0.8), measured(predicted=2 * np.ones(2000)), True),
        (rail("calibration", max=1.2), measured(predicted=2 * np.ones(2000)), False),
        (rail("p99_ms", max=50), measured(slow={50.0: half(2000, 1)}), True),
        (rail("p90_ms", max=50), measured(slow={50.0: half(2000, 1)}), False),
        (rail("ctr_lift", min=-0.1), measured(clicks=half(2000, 1)), True),
        (rail("ctr_lift", min=-0.6), measured(clicks=half(2000, 1)), False),
        (rail("ctr_lift", max=0.5), measured(clicks=half(2000, 4)), True),
    ],
)
def test_what_breaks_a_bound(guardrail, arm, breaks) -> None:
    found = judge(guardrail, arm, measured(clicks=half(2000, 2)), 0.05)
    assert found is not None
    assert found.broken is breaks


def test_too_little_says_nothing() -> None:
    few, many = measured(99), measured(clicks=half(2000, 2))
    assert judge(rail("ctr", min=0.9), few, many, 0.05) is None
    assert judge(rail("ctr", min=0.9), many, few, 0.05) is None
    assert judge(rail("error_rate", max=1e-4), measured(), many, 0.05) is None  # two would be expected
    assert judge(rail("ctr_lift", min=0), measured(clicks=np.zeros(2000)), many, 0.05) is None
    assert beyond(0.0, measured(clicks=np.zeros(2000)), many, 0.05) is None
    assert not enough({"a": many}, ("a", "b"))
    assert not enough({"a": many, "b": few}, ("a", "b"))
    assert enough({"a": many, "b": many}, ("a", "b"))


def test_arms_and_guardrails_share_alpha() -> None:
    rails = [
        {"metric": "ctr", "min": 0.5, "action": "stop"},
        {"metric": "p95_ms", "max": 7, "action": "alert"},
    ]
    (declared,) = read([experiment(guardrails=rails)]).layers["l0"].experiments
    assert latencies(declared) == [7]
    arms = {name: measured(slow={7.0: half(2000, 5)}) for name in "ab"}
    assert [each.guardrail.metric for each in broken(declared, arms)["b"]] == ["ctr", "p95_ms"]
    assert broken(declared, {"b": arms["b"]}) == {}  # without a control
    assert broken(declared, {"a": arms["a"]}) == {}
    alone = judge(declared.guardrails[1], arms["b"], arms["a"], 0.05)
    assert alone is not None
    assert broken(declared, arms)["b"][1].low < alone.low


def test_an_arm_at_its_bounds_is_seldom_stopped() -> None:
    """Looked at on each of 14 days, exactly at the bounds: at most alpha, 0.05 of 400, is 20."""
    random, units, stops = np.random.default_rng(5), 1000, {"error_rate": 0, "ctr": 0}
    for _ in range(400):
        requests = random.poisson(2.0, (14, units)).cumsum(0)
        counts = {
            name: random.binomial(np.diff(requests, axis=0, prepend=0), 0.05).cumsum(0) for name in stops
        }
        for name, bound in (("error_rate", {"max": 0.05}), ("ctr", {"min": 0.05})):
            for day in range(14):
                arm = Measured(
                    requests[day], counts["error_rate"][day], requests[day], counts["ctr"][day],
                    counts["ctr"][day], {},
                )  # fmt: skip
                found = judge(rail(name, **bound), arm, arm, 0.05)
                if found is not None and found.broken:
                    stops[name] += 1
                    break
    assert stops["error_rate"] <= 20
    assert stops["ctr"] <= 20


def test_an_arm_is_measured_from_a_log(tmp_path) -> None:
    from service.contract.exposure import read as read_log
    from tests.service.experiments.test_report import exposure, save

    exposures = [
        exposure("r1", "u1", "b", ["x", "y"], ms=3.0, scores=[0.5, 0.25]),
        exposure("r2", "u1", "b", ["x"], ms=30.0),
        exposure("r3", "u2", "b", [], status=503, ms=60.0),
        exposure("r4", "u3", "a", ["x"]),
    ]
    log = read_log(save(tmp_path, exposures, [{"request_id": "r1", "item": "y", "time": 1.0}]))
    found = Measured.of(outcomes(log, "trial", ["a", "b"]), 1, [20.0])
    assert found.requests.tolist() == [2, 1]
    assert found.failed.tolist() == [0, 1]
    assert found.impressions.tolist() == [3, 0]
    assert found.clicks.tolist() == [1, 0]
    assert found.predicted == pytest.approx([0.85, 0])
    assert found.slow[20.0].tolist() == [1, 1]

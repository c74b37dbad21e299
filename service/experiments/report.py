"""`report`: what an experiment's log says, from the check of its sample ratio to a verdict in words.

docs/experiment-report.md says what each number means. The service never imports this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from service.contract import files
from service.contract.exposure import read
from service.experiments import figures, page
from service.experiments import statistics as of
from service.experiments.outcomes import Ints, Outcomes, outcomes
from service.experiments.plan import Before, Plan, ReportError
from service.experiments.statistics import Estimate
from service.experiments.verdict import verdict

MISMATCH = 1e-3
"""A p of the sample-ratio test below which there is no effect to be shown (Fabijan et al. 2019)."""
_LEAST = 50
"""Clicks of an arm below which nothing is said: a normal distribution is far away there."""


def report(log: Path, experiment: str, plan: Plan, before: Before | None = None) -> dict[str, Any]:
    """Everything there is to say, as JSON; on a sample-ratio mismatch that, and no effect.

    Args:
        log: folder of exposures and clicks.
        experiment: its name.
        plan: arms and their weights, and what the experiment was made to find.
        before: a value of each unit from before the experiment, such as its clicks; units may be missing.

    Raises:
        ReportError: the plan has no two arms, or the log no request of one of them.
        LogError: the log cannot be read.
    """
    if len(plan.arms) < 2 or min(plan.arms.values()) <= 0:
        raise ReportError("an experiment has two arms or more, each with a weight above 0")
    found = read(log)
    there = outcomes(found, experiment, [*plan.arms])
    units = {name: int((there.arm == at).sum()) for at, name in enumerate(there.arms)}
    if missing := [name for at, name in enumerate(there.arms) if not there.totals(at)[1].size]:
        raise ReportError(f"the log has nothing of {experiment} under {', '.join(missing)}")
    p = of.sample_ratio([*units.values()], [*plan.arms.values()])
    days = [name for name, _, _ in there.by_day()]
    whole: dict[str, Any] = {
        "experiment": experiment,
        "plan": {**asdict(plan), "arms": dict(plan.arms)},
        "log": {
            "days": len(days),
            "first_day": days[0],
            "last_day": days[-1],
            "requests": len(there.unit),
            **there.faults,
            "files_cut": list(found.cut),
        },
        "sample_ratio": {"units": units, "p": p, "mismatch": p < MISMATCH},
    }
    if p >= MISMATCH:
        whole |= _effects(there, plan, before)
    whole["verdict"] = verdict(whole)
    return whole


def write(whole: Mapping[str, Any], folder: Path) -> None:
    """`report.json`, `report.md` and `report.html`, which has its figures inside."""
    files.write(folder / "report.json", json.dumps(whole, indent=1, allow_nan=False))
    text = page.markdown(whole)
    files.write(folder / "report.md", text)
    files.write(folder / "report.html", page.html(whole, figures.draw(whole)))


def _effects(there: Outcomes, plan: Plan, before: Before | None) -> dict[str, Any]:
    arms = {}
    for at, name in enumerate(there.arms):
        clicks, impressions = there.totals(at)
        rate = of.ratio(clicks, impressions)
        low, high = rate.interval(of.fixed(plan.alpha))
        arms[name] = {
            "impressions": int(impressions.sum()),
            "clicks": int(clicks.sum()),
            "ctr": {
                "value": float(rate.value),
                "se": _number(rate.se),
                "low": _number(low),
                "high": _number(high),
            },
        }
    control, *treatments = there.arms
    level = plan.alpha / len(treatments)  # Bonferroni: the control is looked at once for each
    return {
        "control": control,
        "arms": arms,
        "comparisons": {
            name: _comparison(there, at, plan, level, before) for at, name in enumerate(treatments, 1)
        },
        "calibration": {
            name: asdict(of.calibration(*there.scored(at)))
            for at, name in enumerate(there.arms)
            if len(there.scored(at)[0])
        },
    }


def _comparison(there: Outcomes, arm: int, plan: Plan, level: float, before: Before | None) -> dict[str, Any]:
    """One treatment beside the control, which is arm 0."""

    def effect(estimates: Iterable[Estimate]) -> dict[str, Any]:
        treatment, control = estimates
        return _effect(treatment, control, plan, level)

    def ctr(requests: Ints | None = None) -> dict[str, Any]:
        totals = [there.totals(at, requests) for at in (arm, 0)]
        if min(clicks.sum() for clicks, _ in totals) < _LEAST:
            return _UNKNOWN
        return effect(of.ratio(*each) for each in totals)

    both = [there.totals(at) for at in (arm, 0)]
    domains = {
        name: {
            "impressions": int(there.impressions[requests].sum()),
            **ctr(requests),
        }
        for name, requests in there.by_domain()
    }
    known = [each for each in domains.values() if each["se"] is not None]
    spread = of.heterogeneity(
        np.array([each["lift"] for each in known]), np.array([each["lift_se"] for each in known])
    )
    found = {
        "ctr": ctr(),
        "guardrails": {
            "impressions per unit": effect([of.mean(impressions) for _, impressions in both]),
            "clicks per unit": effect([of.mean(clicks) for clicks, _ in both]),
        },
        "domains": domains,
        "heterogeneity": asdict(spread),
        "days": [
            {"day": name, "daily": ctr(day), "cumulative": ctr(so_far)}
            for name, day, so_far in there.by_day()
        ],
        "novelty": _novelty(there, ctr),
    }
    if before is not None:
        past = [
            np.array([before.get(there.names[unit], np.nan) for unit in there.units(at)], np.float64)
            for at in (arm, 0)
        ]
        adjusted, correlation = of.cuped([of.linearised(*each) for each in both], past)
        found["cuped"] = {
            **effect([of.mean(values) for values in adjusted]),
            "correlation": correlation,
            "variance_removed": correlation**2,
            "units_known": int(sum(np.isfinite(each).sum() for each in past)),
        }
    return found


def _novelty(there: Outcomes, ctr: Callable[[Ints], dict[str, Any]]) -> dict[str, Any] | None:
    """The effect in the first and the second half of the days, and by how much the lift moved.

    The halves share units, whose clicks are alike, so an interval that takes them to be independent is wide.
    """
    days = np.unique(there.day)
    first = there.day < days[len(days) // 2]
    early, late = (ctr(np.flatnonzero(half)) for half in (first, ~first))
    if early["se"] is None or late["se"] is None:
        return None
    moved = Estimate(late["lift"], late["lift_se"]) - Estimate(early["lift"], early["lift_se"])
    change = [float(end) for end in moved.interval(of.fixed(0.05))]
    return {"first_half": early, "second_half": late, "change": change}


_UNKNOWN: dict[str, Any] = dict.fromkeys(
    (
        "difference",
        "se",
        "fixed",
        "always_valid",
        "lift",
        "lift_se",
        "lift_fixed",
        "lift_always_valid",
        "p_fixed",
        "p_always_valid",
    )
)


def _effect(treatment: Estimate, control: Estimate, plan: Plan, level: float) -> dict[str, Any]:
    """The difference and the relative lift, each with both intervals; None where there is no variance.

    The mixture makes the always-valid interval narrowest at the standard error that the plan asks for.
    """
    difference = treatment - control
    if not (min(treatment.value, control.value) > 0 and difference.se > 0):  # nor where it is not a number
        return _UNKNOWN
    relative = of.lift(treatment, control)
    planned = of.planned_se(plan.lift * control.value, level, plan.power)
    mixture = of.mixture(planned, level)
    once, ever = of.fixed(level), of.always_valid(difference.se, mixture, level)
    return {
        "difference": float(difference.value),
        "se": float(difference.se),
        "fixed": [float(end) for end in difference.interval(once)],
        "always_valid": [float(end) for end in difference.interval(ever)],
        "lift": float(relative.value),
        "lift_se": float(relative.se),
        "lift_fixed": [float(end) for end in relative.interval(once)],
        "lift_always_valid": [float(end) for end in relative.interval(ever)],
        "p_fixed": float(of.p_fixed(difference)),
        "p_always_valid": float(of.p_always_valid(difference, mixture)),
    }


def _number(value: Any) -> float | None:  # noqa: ANN401 - numpy's
    return float(value) if np.isfinite(value) else None

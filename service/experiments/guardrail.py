"""Guardrails: whether an arm breaks a bound for certain, as far as is known by now.

Pure functions of numbers by unit. Whoever watches looks as often as they like, so the interval of each metric
is the always-valid one: over all looks, an arm that keeps every bound is stopped with probability `ALPHA` at
most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.experiments import statistics as of
from service.experiments.document import Experiment, Guardrail
from service.experiments.outcomes import Outcomes
from service.experiments.statistics import Estimate, Numbers

ALPHA = 0.05
"""The chance that an experiment's guardrails stop an arm wrongly, shared among them and its arms."""
_UNITS = 100
"""Of an arm below which nothing is said."""
_EVENTS = 20
"""Clicks or failures below which nothing is said, had there been as many as the bound allows."""
_PLANNED: Mapping[str, float] = {"ctr": 0.1, "ctr_lift": 0.1, "calibration": 0.1}
"""The relative distance from its bound at which a metric's interval is narrowest; `_RARE` for others. Five
times too far costs an interval a tenth of its width; too near, and what is far off is seen late."""
_RARE = 0.5
_POWER = 0.8


@dataclass(frozen=True)
class Measured:
    """One arm: numbers by unit."""

    requests: Numbers
    """(U,)"""
    failed: Numbers
    """(U,)"""
    impressions: Numbers
    """(U,)"""
    clicks: Numbers
    """(U,)"""
    predicted: Numbers
    """(U,) sums of probabilities."""
    slow: Mapping[float, Numbers]
    """By bound in milliseconds, (U,) requests that took longer."""

    @classmethod
    def of(cls, there: Outcomes, arm: int, bounds: Sequence[float] = ()) -> Measured:
        """What a log says of an arm.

        Args:
            there: of the experiment.
            arm: its place in `there.arms`.
            bounds: in milliseconds, of latencies that are asked for.
        """
        at = np.flatnonzero(there.arm[there.unit] == arm)
        _, unit = np.unique(there.unit[at], return_inverse=True)
        ends = np.cumsum(there.impressions)
        sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(there.probability.astype(np.float64)))])

        def by_unit(values: Numbers) -> Numbers:
            return np.bincount(unit, values[at])

        return cls(
            by_unit(np.ones(len(there.unit))),
            by_unit(there.failed),
            by_unit(there.impressions),
            by_unit(there.clicks),
            by_unit(sums[ends] - sums[ends - there.impressions]),
            {bound: by_unit(there.ms > bound) for bound in bounds},
        )


@dataclass(frozen=True)
class Judged:
    """A guardrail, looked at in one arm."""

    guardrail: Guardrail
    value: float
    """Of the metric; for a quantile of latency, the share of requests that are slower than its bound."""
    low: float
    high: float
    """The always-valid interval."""
    bound: float
    """What the interval is compared with."""

    @property
    def broken(self) -> bool:
        """Whether the whole interval lies on the wrong side."""
        return self.high < self.bound if self.guardrail.min is not None else self.low > self.bound


def judge(guardrail: Guardrail, arm: Measured, control: Measured, alpha: float) -> Judged | None:
    """Look at a guardrail; None where there is too little to say anything.

    Args:
        guardrail: what is asked.
        arm: of which.
        control: of the same experiment.
        alpha: the chance that the interval misses, over all looks.
    """
    metric, given = guardrail.metric, guardrail.bound
    if min(len(arm.requests), len(control.requests)) < _UNITS:
        return None
    if metric == "ctr_lift":
        return _relative(guardrail, arm, control, alpha)
    if metric == "ctr":
        events, among, bound = arm.clicks, arm.impressions, given
    elif metric == "calibration":
        events, among, bound = arm.clicks, arm.predicted, given
    elif metric == "error_rate":
        events, among, bound = arm.failed, arm.requests, given
    else:
        events, among, bound = arm.slow[given], arm.requests, 1 - int(metric[1:3]) / 100
    if not among.sum() or max(events.sum(), bound * among.sum()) < _EVENTS:
        return None
    found = of.ratio(events, among)
    planned = of.planned_se(_PLANNED.get(metric, _RARE) * max(bound, 1e-3), alpha, _POWER)
    low, high = found.interval(of.always_valid(found.se, of.mixture(planned, alpha), alpha))
    return Judged(guardrail, float(found.value), float(low), float(high), bound)


def beyond(lift: float, arm: Measured, control: Measured, alpha: float) -> tuple[float, float, float] | None:
    """How far an arm's click rate is from a relative change of the control's, in relation to that.

    arm - (1 + lift) · control, over the control: the value, and both ends of its always-valid interval. None
    where there is too little to say anything.
    """
    if min(each.clicks.sum() for each in (arm, control)) < _EVENTS:
        return None
    seen = [of.ratio(each.clicks, each.impressions) for each in (arm, control)]
    treatment, rate = seen[0], float(seen[1].value)
    difference = treatment - Estimate((1 + lift) * rate, (1 + lift) * seen[1].se)
    mixture = of.mixture(of.planned_se(_PLANNED["ctr_lift"] * rate, alpha, _POWER), alpha)
    low, high = difference.interval(of.always_valid(difference.se, mixture, alpha))
    return float(difference.value) / rate, float(low) / rate, float(high) / rate


def enough(arms: Mapping[str, Measured], names: Collection[str]) -> bool:
    """Whether each of some arms has as many units as a guardrail asks for."""
    return all(name in arms and len(arms[name].requests) >= _UNITS for name in names)


def broken(experiment: Experiment, arms: Mapping[str, Measured]) -> dict[str, list[Judged]]:
    """By arm, the guardrails that it breaks.

    Args:
        experiment: whose guardrails.
        arms: those that were measured, the control among them.
    """
    control = arms.get(experiment.control)
    judged = [name for name in arms if name != experiment.control]
    if control is None or not judged or not experiment.guardrails:
        return {}
    alpha = ALPHA / (len(judged) * len(experiment.guardrails))
    found: dict[str, list[Judged]] = {}
    for name in judged:
        for guardrail in experiment.guardrails:
            seen = judge(guardrail, arms[name], control, alpha)
            if seen is not None and seen.broken:
                found.setdefault(name, []).append(seen)
    return found


def latencies(experiment: Experiment) -> list[float]:
    """The bounds of latency, in milliseconds, that an experiment's guardrails have."""
    return [each.bound for each in experiment.guardrails if each.metric.endswith("_ms")]


def _relative(guardrail: Guardrail, arm: Measured, control: Measured, alpha: float) -> Judged | None:
    bound = guardrail.bound
    found = beyond(bound, arm, control, alpha)
    if found is None:
        return None
    value, low, high = (each + bound for each in found)
    return Judged(guardrail, value, low, high, bound)

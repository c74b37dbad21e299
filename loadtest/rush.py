"""More than a server can answer: three times its capacity for a while, and a rate that only grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.load import OK, SHED, Load, summary
from loadtest.sender import Record, poisson

_CALM = 0.7
"""Of the capacity, before and after."""
_BEFORE, _AFTER = 3.0, 10.0
"""Seconds."""
_WINDOW, _STEP = 0.5, 0.05
"""Seconds over which it is judged whether a server has recovered, and between two such looks."""
_RAMP_FROM, _RAMP_TO, _RAMP_STEPS = 0.2, 1.6, 14


@dataclass(frozen=True)
class Rush:
    """Rates over time."""

    capacity: float
    times: float
    seconds: float

    @property
    def ends(self) -> float:
        """Seconds from the start."""
        return _BEFORE + self.seconds

    def due(self) -> npt.NDArray[np.float64]:
        """Moments (n,)."""
        calm = self.capacity * _CALM
        parts = [
            poisson(calm, _BEFORE, 11),
            _BEFORE + poisson(self.capacity * self.times, self.seconds, 12),
            self.ends + poisson(calm, _AFTER, 13),
        ]
        return np.concatenate(parts)


def overload(load: Load, rush: Rush, deadline: float, budget_ms: float) -> dict[str, Any]:
    """Send far too much for a while, each request with a deadline, and look at what comes back."""
    due = rush.due()
    return judge(load.send(due, deadline=deadline), due, rush, deadline, budget_ms)


def judge(
    record: Record, due: npt.NDArray[np.float64], rush: Rush, deadline: float, budget_ms: float
) -> dict[str, Any]:
    """What a record of a rush says.

    Goodput counts answers with 200 whose latency, from the moment due, is within the deadline; the rush's
    first second does not count. Recovery is the time from the rush's end to the first moment from which on,
    for half a second, 99 of 100 requests are answered within the budget.
    """
    good = record.status == OK
    in_time = good & (record.latency <= deadline)
    during = (due >= _BEFORE + min(1.0, rush.seconds / 4)) & (due < rush.ends)
    seconds = rush.ends - (_BEFORE + min(1.0, rush.seconds / 4))
    accepted = record.latency[during & good] * 1e3
    p50, p99 = np.percentile(accepted, [50, 99]) if len(accepted) else (np.inf, np.inf)
    goodput = in_time[during].sum() / seconds
    refused = during & np.isin(record.status, SHED)
    early = record.latency[refused] * 1e3
    return {
        "times_capacity": rush.times,
        "seconds": rush.seconds,
        "deadline_ms": deadline * 1e3,
        "offered_rps": float(during.sum() / seconds),
        "goodput_rps": float(goodput),
        "goodput_ratio": float(goodput / rush.capacity),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "late_share_of_accepted": float(1 - in_time[during].sum() / max(1, (good & during).sum())),
        "shed_rate": float(refused.sum() / during.sum()),
        "shed_p99_ms": float(np.percentile(early, 99)) if len(early) else None,
        "other": {
            str(status): int((record.status[during] == status).sum())
            for status in sorted(set(record.status[during].tolist()) - {OK, *SHED})
        },
        "recovery_s": recovery(record, due, rush.ends, budget_ms),
        "sender_lag_p99_ms": float(np.nanpercentile(record.lag[during], 99) * 1e3),
    }


def recovery(record: Record, due: npt.NDArray[np.float64], ended: float, budget_ms: float) -> float | None:
    """Seconds until the budget is kept again; None if it never was."""
    kept = (record.status == OK) & (record.latency * 1e3 <= budget_ms)
    for begin in np.arange(ended, float(due[-1]) - _WINDOW, _STEP):
        window = kept[(due >= begin) & (due < begin + _WINDOW)]
        if len(window) and window.mean() >= 0.99:
            return float(begin - ended)
    return None


def ramp(load: Load, capacity: float, seconds: float, deadline: float) -> list[dict[str, Any]]:
    """A rate that grows in steps from a fifth of the capacity to beyond it, without a pause."""
    each = seconds / _RAMP_STEPS
    shares = np.linspace(_RAMP_FROM, _RAMP_TO, _RAMP_STEPS)
    due = np.concatenate(
        [at * each + poisson(capacity * share, each, 20 + at) for at, share in enumerate(shares)]
    )
    record = load.send(due, deadline=deadline)
    return [
        {
            "share_of_capacity": float(share),
            **summary(record, capacity * share, (due >= at * each) & (due < (at + 1) * each)).as_dict(),
        }
        for at, share in enumerate(shares)
    ]

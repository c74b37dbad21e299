"""`decide`: what follows for packs on trial from what is known of them. A pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from service.experiments.canary import NEW, OLD
from service.experiments.document import Experiment, Trial
from service.experiments.guardrail import ALPHA, Measured, beyond, broken, enough


@dataclass(frozen=True)
class Decision:
    """What to do with a trial now."""

    what: Literal["wait", "next", "promote", "take back"]
    why: str


def decide(experiment: Experiment, trial: Trial, arms: Mapping[str, Measured], now: float) -> Decision:
    """What follows from what is known.

    Args:
        experiment: of the layer `canary`.
        trial: its own.
        arms: what was measured of both, or of none.
        now: seconds since 1970.
    """
    for judged in broken(experiment, arms).get(NEW, ()):
        rail = judged.guardrail
        kind = f"below {rail.min:g}" if rail.min is not None else f"above {rail.max:g}"
        return Decision("take back", f"{rail.metric} is {kind}: {judged.low:.4g} to {judged.high:.4g}")
    step, known = len(experiment.ramp), enough(arms, (OLD, NEW))
    held = now - experiment.ramp[-1].at.timestamp()
    found = None
    if step == len(trial.shares) and known:
        found = beyond(-trial.margin, arms[NEW], arms[OLD], ALPHA)
    if held >= trial.hold_seconds:
        if step < len(trial.shares) and known:
            return Decision("next", f"{held / 3600:.1f} hours without a broken guardrail")
        if found is not None and found[1] > 0:
            return Decision("promote", f"a loss of {trial.margin:.1%} of the clicks is ruled out")
    if now >= trial.until.timestamp():
        return Decision("take back", f"a loss of {trial.margin:.1%} of the clicks was not ruled out in time")
    return Decision("wait", f"step {step} of {len(trial.shares)}, for {held / 3600:.1f} hours")

"""How often the trial of a pack ends right: simulated worlds in which the better of two packs is known.

In each world either pack is tried against the other. It is right where the better one is promoted and the
worse one is taken back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from loadtest.users import Users
from service.experiments import canary
from service.experiments.canary import HOLD, LASTS, MARGIN, NEW, OLD, SHARES
from service.experiments.decision import decide
from service.experiments.document import CANARY, Experiment, Trial, parse
from service.experiments.guardrail import Measured

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Worlds:
    """What is simulated."""

    worlds: int = 100
    units: int = 200_000
    """That there are; a trial has half of them in its last step."""
    lift: float = 0.03
    """By which one pack's click probabilities are above the other's."""


def simulate(size: Worlds, users: Users, console: Console) -> dict[str, Any]:
    """Trials of both packs in every world."""
    random = np.random.default_rng(1)
    ends: dict[str, list[tuple[str, int]]] = {"better": [], "worse": []}
    for _ in track(range(size.worlds), "canary", console=console):
        for which, lift in (("better", size.lift), ("worse", 1 / (1 + size.lift) - 1)):
            ends[which].append(trial(random, users, size.units, lift))
    promoted = [what == "promote" for what, _ in ends["better"]]
    back = [what == "take back" for what, _ in ends["worse"]]
    return {
        "worlds": size.worlds,
        "right": sum(map(min, promoted, back)),
        "lift": size.lift,
        "units": size.units,
        "better_promoted": sum(promoted),
        "worse_taken_back": sum(back),
        "days_to_promote": float(np.median([days for _, days in ends["better"]])),
        "days_to_take_back": float(np.median([days for _, days in ends["worse"]])),
        "margin": MARGIN,
        "shares": list(SHARES),
    }


def trial(random: np.random.Generator, users: Users, units: int, lift: float) -> tuple[str, int]:
    """How one trial ends, looked at once a day, and after how many days.

    Args:
        random: where chance comes from.
        users: who they are.
        units: how many there are.
        lift: relative change of every user's probability to click under the new pack.
    """
    plan = Trial(
        bundle="simulated",
        against={"books": "1" * 16},
        shares=SHARES,
        hold_seconds=HOLD.total_seconds(),
        margin=MARGIN,
        until=_BEGIN + LASTS,
    )
    document = canary.begun(None, canary.declared({"books": "0" * 16}, [], plan, _BEGIN))
    experiment = _read(document)
    seen, rate = users.draw(random, round(2 * SHARES[-1] * units))
    treated = random.random(len(seen)) < 0.5
    rate = np.where(treated, np.minimum((1 + lift) * rate, 1.0), rate)
    clicks, impressions = np.zeros((2, len(seen)), np.int64)
    days = 0
    while True:
        # Who stands first comes first: positions are uniform, so the order of the units is as good.
        there = round(experiment.ramp[-1].share * units)
        clicked = random.poisson(seen[:there] * rate[:there])
        clicks[:there] += clicked
        impressions[:there] += clicked + random.poisson(seen[:there] * (1 - rate[:there]))
        days += 1
        arms = {
            name: _measured(clicks[:there][side], impressions[:there][side])
            for name, side in ((NEW, treated[:there]), (OLD, ~treated[:there]))
        }
        now = (_BEGIN + timedelta(days=days)).timestamp()
        decision = decide(experiment, plan, arms, now)
        if decision.what in {"promote", "take back"}:
            return decision.what, days
        if decision.what == "next":
            document = canary.moved_on(document, experiment, plan, now)
            experiment = _read(document)


def _read(document: Mapping[str, Any]) -> Experiment:
    (found,) = parse(json.dumps(document).encode(), canary=True).layers[CANARY].experiments
    return found


def _measured(clicks: Any, impressions: Any) -> Measured:  # noqa: ANN401 - arrays
    ones = np.ones(len(clicks))
    return Measured(ones, 0 * ones, impressions, clicks, clicks, {})

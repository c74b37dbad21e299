"""Packs on trial: how a document of experiments says so, and how it changes as the trial goes on.

A pack on trial is an experiment of the layer `canary` with two arms of one weight, so the new pack is
compared with as many units that have the old one, and each step adds units and moves none. After the last
step the new pack is promoted; at any moment at which it breaks a guardrail it is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from service.experiments.document import CANARY, FORMAT, Experiment, ExperimentsError, Trial

OLD, NEW = "old", "new"
"""The arms."""
SHARES = (0.01, 0.05, 0.25)
"""Of all units, what the new pack has before it has all of them."""
HOLD = timedelta(days=1)
LASTS = timedelta(days=28)
MARGIN = 0.01
ERRORS = 0.02
"""The share of requests that may fail."""


def declared(
    versions: Mapping[str, str], guardrails: Sequence[Mapping[str, Any]], trial: Trial, now: datetime
) -> dict[str, Any]:
    """The experiment that puts packs on trial, as a document has it.

    Args:
        versions: by domain, the packs; one decision is made for all of them.
        guardrails: as a document has them, beside that clicks must not fall.
        trial: how it goes on.
        now: when it begins.
    """
    return {
        "name": f"{CANARY}-{now:%Y%m%d-%H%M%S}",
        "unit": "user",
        "slice": [0, 1],
        "domains": sorted(versions),
        "arms": {OLD: {"weight": 1}, NEW: {"weight": 1, "version": dict(versions)}},
        "ramp": [{"at": now.isoformat(), "share": 2 * trial.shares[0]}],
        "guardrails": [{"metric": "ctr_lift", "min": 0, "action": "stop"}, *guardrails],
        "trial": trial.model_dump(mode="json"),
    }


def begun(document: Mapping[str, Any] | None, experiment: Mapping[str, Any]) -> dict[str, Any]:
    """A document with packs on trial besides.

    Raises:
        ExperimentsError: others are on trial. Two trials would share users, and neither could be judged.
    """
    found = {"version": FORMAT, "layers": {}, **(document or {})}
    for trial in found["layers"].get(CANARY, {}).get("experiments", ()):
        domains = ", ".join(trial["domains"])
        raise ExperimentsError(f"{trial['name']} is under way in {domains}; there is one trial at a time")
    return {**found, "layers": {**found["layers"], CANARY: {"experiments": [experiment]}}}


def moved_on(document: Mapping[str, Any], experiment: Experiment, trial: Trial, now: float) -> dict[str, Any]:
    """The document with a trial in its next step."""
    share = 2 * trial.shares[len(experiment.ramp)]
    step = {"at": datetime.fromtimestamp(now, UTC).isoformat(), "share": share}
    return changed(document, experiment.name, lambda there: {**there, "ramp": [*there["ramp"], step]})


def ended(document: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """The document without a trial."""
    return changed(document, experiment.name, lambda _: None)


def stopped(document: Mapping[str, Any], experiment: Experiment, arm: str) -> dict[str, Any]:
    """The document with nobody in an arm any more."""

    def stop(there: Mapping[str, Any]) -> dict[str, Any]:
        arms = {**there["arms"], arm: {**there["arms"][arm], "stopped": True}}
        return {**there, "arms": arms}

    return changed(document, experiment.name, stop)


def changed(
    document: Mapping[str, Any], name: str, change: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
) -> dict[str, Any]:
    """The document with one experiment changed, or without it where nothing is left of it."""
    layers = {}
    for layer, found in document["layers"].items():
        each = [change(one) if one["name"] == name else one for one in found["experiments"]]
        layers[layer] = {**found, "experiments": [one for one in each if one is not None]}
    return {**document, "layers": layers}

"""Which arms a request is in: a pure function of the document, of who asks, and of the time.

A unit has a position in [0, 1) in each layer and another, independent, in each experiment. The first says
whether it is in, the second in which arm. So whoever is in stays in, and in the same arm, as a ramp rises.
Positions are pinned by a golden file: another hash would sort every running experiment anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

from service.contract.hashing import position
from service.experiments.document import UNITS, Arm, Experiment, Experiments, Unit

Units = Mapping[Unit, str]
"""What a request gives of itself: its user's, session's and own id, those that it has."""
Fields = Mapping[str, Mapping[str, Any]]
"""What a request says, by owner (`user`, `context`) and name."""


class Assignment(NamedTuple):
    """A request is in an arm."""

    layer: str
    experiment: str
    arm: str
    unit: Unit
    """What was assigned; an analysis counts these."""
    change: Arm
    """What to do otherwise than for requests in no experiment."""
    forced: bool = False
    """By a tester: an analysis leaves it out."""


def assign(
    experiments: Experiments,
    units: Units,
    domain: str,
    fields: Fields,
    now: float,
    *,
    forced: Assignment | None = None,
) -> tuple[Assignment, ...]:
    """The arms that a request is in, one a layer at most.

    Args:
        experiments: the document.
        units: of the request.
        domain: that the request asks for.
        fields: of the request.
        now: seconds since 1970.
        forced: by `forced.verify`: takes its layer, whatever else keeps the unit out of it.
    """
    held = held_out(experiments, units)
    found = []
    for name, layer in experiments.layers.items():
        if forced is not None and forced.layer == name and _covers(experiments, forced, domain):
            found.append(forced)
            continue
        if held or not layer.experiments or (unit := units.get(layer.unit)) is None:
            continue
        at = position(f"layer:{name}", unit)
        for experiment in layer.experiments:
            if experiment.slice[0] <= at < experiment.end(now) and _meant(experiment, domain, fields):
                arm = _arm(experiment, unit)
                change = experiment.arms[arm]
                if not change.stopped:
                    found.append(Assignment(name, experiment.name, arm, layer.unit, change))
                break
    return tuple(found)


def held_out(experiments: Experiments, units: Units) -> bool:
    """Whether a request is kept out of every experiment.

    Its user decides; without one its session, and without that the request itself. So a user who is held out
    is so in layers of every unit.
    """
    if not experiments.holdout:
        return False
    for unit in UNITS:
        if unit in units:
            return position("holdout", units[unit]) < experiments.holdout
    return False


def _arm(experiment: Experiment, unit: str) -> str:
    at = position(experiment.arm_salt, unit)
    ends, names = experiment.edges
    return names[bisect_right(ends, at)]


def _meant(experiment: Experiment, domain: str, fields: Fields) -> bool:
    """Whether an experiment is about such requests."""
    if experiment.domains is not None and domain not in experiment.domains:
        return False
    for owner, name, values in experiment.targets:
        given = fields.get(owner, {}).get(name)
        # What is most often given, without a call.
        if given not in values if type(given) is str else not _is_one(given, values):
            return False
    return True


def _is_one(given: object, values: frozenset[str]) -> bool:
    """Whether a field has one of some values. 42 and "42" are one, as they are to a model."""
    if isinstance(given, list):
        return any(_is_one(each, values) for each in given)
    if type(given) is int and abs(given) < 2**63:  # a longer number could not even be written out
        given = str(given)
    return type(given) is str and given in values


def _covers(experiments: Experiments, forced: Assignment, domain: str) -> bool:
    domains = experiments.by_name[forced.experiment][1].domains
    return domains is None or domain in domains

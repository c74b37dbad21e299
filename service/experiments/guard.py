"""The guard: looks at the log, stops arms that break a guardrail, and moves trials of packs on.

It is a process of its own beside the services, and there is one; a second only finds that the first was
faster. A service needs neither it nor what it imports.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from service import lifecycle
from service.contract.errors import Conflict, StoreError, UnknownVersion
from service.contract.exposure import Kept, Log, LogError, read
from service.experiments import canary
from service.experiments.decision import decide
from service.experiments.document import Experiment, Experiments, ExperimentsError, Trial, parse
from service.experiments.guardrail import Judged, Measured, broken, latencies
from service.experiments.outcomes import outcomes
from service.experiments.place import Place
from service.stores._protocol import PackStore

BY = "guard"
log = structlog.get_logger()
Stores = Callable[[str], PackStore]
"""From a bundle's id to its store."""


class Memory:
    """What looks before have read, as far as later ones need it."""

    def __init__(self) -> None:
        self._kept = Kept(())

    def of(self, experiments: Collection[str]) -> Kept:
        """What is known of these experiments; an experiment that is new to it makes it begin anew."""
        if not self._kept.experiments.issuperset(experiments):
            self._kept = Kept(experiments)
        return self._kept


@dataclass(frozen=True)
class Event:
    """Something that the guard did or saw."""

    time: float
    experiment: str
    arm: str
    what: str
    """`stopped`, `alert`, `next`, `promoted` or `taken back`."""
    why: str


async def look(
    place: Place, folder: Path, stores: Stores, now: float | None = None, memory: Memory | None = None
) -> list[Event]:
    """Look once, and do what follows.

    Args:
        place: of the document.
        folder: of exposures and clicks.
        stores: where packs are promoted.
        now: seconds since 1970; by default, now.
        memory: of looks before; parts of the log that were closed by then are not read again.

    Raises:
        ExperimentsError: the document is wrong.
        LogError: the log cannot be read.
        StoreError: the document or the packs cannot be read or written. Nothing was decided.
        Conflict: somebody else changed the document meanwhile; another look decides anew.
    """
    now = time.time() if now is None else now
    found = await place.read()
    if found is None:
        return []
    experiments = parse(found.text, canary=True)
    if not any(each.guardrails or each.trial for each in _running(experiments, now)):
        return []
    kept = None if memory is None else memory.of({each.name for each in _running(experiments, now)})
    logged, document = read(folder, kept), json.loads(found.text)
    events: list[Event] = []
    for experiment in _running(experiments, now):
        arms = _measured(logged, experiment)
        if experiment.trial is not None:
            document = await _tried(document, (experiment, experiment.trial), arms, stores, (now, events))
            continue
        for arm, judged in broken(experiment, arms).items():
            stops = [each for each in judged if each.guardrail.action == "stop"]
            what = "stopped" if stops else "alert"
            events.append(Event(now, experiment.name, arm, what, "; ".join(map(said, stops or judged))))
            if stops:
                document = canary.stopped(document, experiment, arm)
    text = json.dumps(document, indent=2).encode()
    if json.loads(found.text) != document:
        parse(text, canary=True)
        why = "; ".join(f"{each.experiment}, {each.arm} {each.what}: {each.why}" for each in events)
        await place.replace(found, text, by=BY, why=why)
    return events


async def watch(
    place: Place, folder: Path, stores: Stores, seconds: float, tell: Callable[[Event], None]
) -> None:
    """Look again and again, until cancelled.

    What cannot be read or written now may be later. An alert is told once.

    Args:
        place: of the document.
        folder: of exposures and clicks.
        stores: where packs are promoted.
        seconds: between two looks.
        tell: called with what happens.
    """
    alerted, memory = set[tuple[str, str]](), Memory()
    while True:
        try:
            for event in await look(place, folder, stores, memory=memory):
                key = event.experiment, event.arm
                if event.what != "alert" or key not in alerted:
                    tell(event)
                if event.what == "alert":
                    alerted.add(key)
        except (StoreError, LogError, ExperimentsError) as error:
            log.warning("the guard cannot see", reason=str(error), again_in_seconds=seconds)
        await asyncio.sleep(seconds)


def said(judged: Judged) -> str:
    """A broken guardrail in words."""
    rail = judged.guardrail
    kind = f"below {rail.min:g}" if rail.min is not None else f"above {rail.max:g}"
    if rail.metric.endswith("_ms"):
        return f"{rail.metric} is {kind}: {judged.value:.2%} of the requests are slower"
    return f"{rail.metric} is {kind}: {judged.value:.4g}, between {judged.low:.4g} and {judged.high:.4g}"


def line(event: Event) -> str:
    """An event as JSON."""
    return json.dumps(asdict(event))


def _running(experiments: Experiments, now: float) -> Iterator[Experiment]:
    for _, experiment in experiments.by_name.values():
        if experiment.end(now) > experiment.slice[0]:
            yield experiment


def _measured(logged: Log, experiment: Experiment) -> dict[str, Measured]:
    """The arms that anybody is in, and of which the log knows."""
    names = [name for name, arm in experiment.arms.items() if not arm.stopped]
    there = outcomes(logged, experiment.name, names)
    bounds = latencies(experiment)
    return {name: Measured.of(there, at, bounds) for at, name in enumerate(names) if (there.arm == at).any()}


async def _tried(
    document: Mapping[str, Any],
    of: tuple[Experiment, Trial],
    arms: Mapping[str, Measured],
    stores: Stores,
    told: tuple[float, list[Event]],
) -> Mapping[str, Any]:
    """The document after what follows for packs on trial was done."""
    (experiment, trial), (now, events) = of, told
    decision = decide(experiment, trial, arms, now)
    if decision.what == "wait":
        return document
    if decision.what == "next":
        events.append(Event(now, experiment.name, canary.NEW, "next", decision.why))
        return canary.moved_on(document, experiment, trial, now)
    what, why = "taken back", decision.why
    if decision.what == "promote":
        versions = experiment.arms[canary.NEW].version or {}
        store = stores(trial.bundle)
        try:
            live = await store.live()
            if any(live.get(domain) != version for domain, version in versions.items()):
                # Else a look before this one was cut short after it had promoted.
                await lifecycle.promote(store, versions, run=experiment.name, by=BY, expected=trial.against)
            what = "promoted"
        except (Conflict, UnknownVersion) as error:
            why = str(error)
        finally:
            await store.close()
    events.append(Event(now, experiment.name, canary.NEW, what, why))
    return canary.ended(document, experiment)

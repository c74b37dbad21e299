"""`Arms`: what requests get that are in an experiment: their arms, and the packs that those change to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from service.contract.errors import NotReady
from service.contract.pack import GENERAL
from service.experiments.assign import Assignment, Fields, Units, assign
from service.experiments.document import Arm, Experiment, Experiments, ExperimentsError, Unit
from service.experiments.forced import verify
from service.loading import Loader, Refusal, discard
from service.packs import PackCache
from service.resident import Resident
from service.routing import Router
from service.scoring import Scorer
from service.stores._protocol import Domain, Version


class Membership(NamedTuple):
    """A request in one arm."""

    experiment: str
    arm: str
    unit: str
    """The unit's own id."""
    propensity: float
    """The chance that the unit had of this arm, among those in the experiment."""
    forced: bool


class Chosen(NamedTuple):
    """All that experiments decide about a request."""

    memberships: tuple[Membership, ...]
    """The last is the one that may change the answer."""
    change: Arm | None
    """What is to be changed; None for nothing."""
    shadow: Arm | None = None
    """Under what to score besides."""


class Model(NamedTuple):
    """A bundle that serves."""

    bundle: str
    """Its id."""
    packs: PackCache
    router: Router
    scorer: Scorer


class Answering(NamedTuple):
    """What answers a request."""

    pack: Resident
    model: Model


NOTHING = Chosen((), None)


class Arms:
    """The arms of the document that is followed. It belongs to one event loop.

    Packs that a document names by version are loaded before any request is assigned by it, and stay beside
    those that are live.
    """

    def __init__(self, loader: Loader, own: Model, others: Sequence[Model], secret: str) -> None:
        """No experiment yet.

        Args:
            loader: of the first bundle's versions that are not live.
            own: the first bundle, which answers outside of experiments.
            others: those that arms may name.
            secret: that forced arms are signed with; none is forced where it is empty.
        """
        self._loader, self._own, self._secret = loader, own, secret
        self._models = {model.bundle: model for model in (own, *others)}
        self._document: Experiments | None = None
        self._versions: dict[tuple[Domain, Version], Resident] = {}

    async def prepare(self, document: Experiments | None) -> None:
        """Load what a document names, and assign by it from then on.

        Raises:
            ExperimentsError: it names something that this service cannot serve.
            StoreError: the store does not answer.
        """
        running = [] if document is None else _unfinished(document, time.time())
        self._check(running)
        wanted = {
            pair
            for experiment in running
            for arm in experiment.arms.values()
            for pair in (arm.version or {}).items()
        }
        missing = sorted(wanted - self._versions.keys())
        loaded = await self._loader.load(missing)
        refused = [each for each in zip(missing, loaded, strict=True) if isinstance(each[1], Refusal)]
        if refused:
            discard(loaded)
            raise ExperimentsError(_faults(refused))
        for pair, pack in zip(missing, loaded, strict=True):
            if isinstance(pack, Resident):
                self._versions[pair] = pack
        self._document = document
        for pair in self._versions.keys() - wanted:
            self._versions.pop(pair).supersede()

    def choose(self, domain: Domain, units: Units, fields: Fields, force: bytes | None, now: float) -> Chosen:
        """What experiments decide about a request.

        The first layer whose arm changes something, or is a shadow, has the request to itself from there on:
        two changes at once would be neither arm. The layers before it are not touched by that.

        Args:
            domain: asked for.
            units: of the request.
            fields: of the request.
            force: the header that forces an arm, if there is one.
            now: seconds since 1970.

        Raises:
            ForceRefused: the header is wrong.
        """
        document = self._document
        if document is None:
            if force is None:
                return NOTHING
            document = Experiments(version=1, layers={})
        forced = None if force is None else verify(self._secret, force.decode("latin-1"), document, now)
        memberships: list[Membership] = []
        for found in assign(document, units, domain, fields, now, forced=forced):
            experiment = document.by_name[found.experiment][1]
            memberships.append(_membership(found, experiment, units))
            if found.change.shadow:
                return Chosen(tuple(memberships), None, found.change)
            if found.change.changes:
                return Chosen(tuple(memberships), found.change)
        return Chosen(tuple(memberships), None) if memberships else NOTHING

    def now(self, change: Arm, domain: Domain) -> Answering | None:
        """What answers under an arm, at once; None where `route` has to be asked. Hold its pack soon.

        Raises:
            NotReady: the arm's experiment is over.
            UnknownDomain: no pack answers.
        """
        model = self._own
        if change.version is not None:
            found = self._versions.get((domain, change.version[domain]))
            if found is None:  # which only a forced arm of an experiment that is over can be
                raise NotReady(f"version {change.version[domain]} of {domain} is not loaded any more")
        elif change.fallback is not None:
            found = model.packs.resident.use(GENERAL)
        else:
            model = self._model(change)
            found = model.router.now(change.domain or domain)
        return None if found is None else Answering(found, model)

    async def route(self, change: Arm, domain: Domain, seconds: float) -> Answering:
        """What answers under an arm. Hold its pack before anything else is awaited.

        Args:
            change: what the arm changes.
            domain: asked for.
            seconds: how long a pack that is not resident may take to come.

        Raises:
            NotReady: none answers yet.
            UnknownDomain: no pack answers.
            DeadlineExceeded: none does in time.
        """
        found = self.now(change, domain)
        if found is not None:
            return found
        if change.fallback is not None:
            return Answering(await self._own.router.general(seconds), self._own)
        model = self._model(change)
        return Answering(await model.router.route(change.domain or domain, seconds), model)

    def close(self) -> None:
        """Release the packs."""
        for pack in self._versions.values():
            pack.supersede()
        self._versions.clear()

    def _model(self, change: Arm) -> Model:
        if change.bundle is None:
            return self._own
        if change.bundle not in self._models:  # likewise
            raise NotReady(f"{change.bundle} is not served here")
        return self._models[change.bundle]

    def _check(self, experiments: Iterable[Experiment]) -> None:
        """Refuse arms that could not answer every request that comes to be in them.

        Raises:
            ExperimentsError: there is one.
        """
        for experiment in experiments:
            for name, arm in experiment.arms.items():
                if arm.bundle is not None and arm.bundle not in self._models:
                    raise ExperimentsError(f"{experiment.name}, {name}: {arm.bundle} is not served here")
                there = self._model(arm).packs
                known = there.live.keys() | there.good.keys()
                asked = experiment.domains or (self._own.packs.live if arm.bundle is not None else ())
                needed = {arm.domain} if arm.domain is not None else set(asked) if arm.bundle else set()
                if missing := sorted(needed - known):
                    raise ExperimentsError(f"{experiment.name}, {name}: no pack is live in {missing[0]}")


def units(user: Mapping[str, Any], unit: str | None, session: str | None, request: str) -> dict[Unit, str]:
    """What a request gives of itself.

    Args:
        user: its user's fields.
        unit: that it names in its user's place.
        session: its header.
        request: its own id.
    """
    found: dict[Unit, str] = {"request": request}
    given = user.get("id")
    if unit is not None:
        found["user"] = unit
    elif type(given) in {int, str}:
        found["user"] = str(given)
    if session:
        found["session"] = session
    return found


def _membership(found: Assignment, experiment: Experiment, units: Units) -> Membership:
    weights = sum(arm.weight for arm in experiment.arms.values())
    unit = units.get(found.unit) or units["request"]
    share = found.change.weight / weights
    return Membership(found.experiment, found.arm, unit, share, found.forced)


def _unfinished(document: Experiments, now: float) -> list[Experiment]:
    return [each for _, each in document.by_name.values() if each.stop is None or each.stop.timestamp() > now]


def _faults(refused: Iterable[tuple[tuple[Domain, Version], Any]]) -> str:
    return "; ".join(
        f"version {version} of {domain} cannot be served: {why.reason}" for (domain, version), why in refused
    )

"""`Experiments`: the document that says which experiments there are.

It is checked whole when it is read, so that assigning finds nothing left to check, and each fault names its
place: `layers.ranking.experiments[1].arms.b.weight: ...`. `docs/experiments.md` describes every key.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.contract.errors import MdctrError
from service.experiments.repeats import noting, twice

FORMAT = 1
CANARY = "canary"
"""The layer of packs on trial. Tools write it, people do not."""

Unit = Literal["user", "session", "request"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""From the one that stays longest to the one that is gone first."""
Change = Literal["version", "domain", "bundle", "fallback"]
_Loc = tuple[int | str, ...]


class ExperimentsError(MdctrError):
    """A document of experiments is wrong, at the places that its text names."""


def _moment(given: Any) -> Any:  # noqa: ANN401 - whatever JSON held
    # pydantic takes digits in a string for a Unix time.
    if isinstance(given, datetime):  # which no JSON holds
        return given
    if not isinstance(given, str):
        raise PydanticCustomError("moment", "a time is text, as ISO 8601 has it")
    try:
        return datetime.fromisoformat(given)
    except ValueError:
        raise PydanticCustomError("moment", "not a time as ISO 8601 has it") from None


def _text(given: Any) -> str:  # noqa: ANN401 - whatever JSON held
    if type(given) not in {int, str}:
        raise PydanticCustomError("value", "neither a text nor an integer")
    return str(given)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Of a layer, experiment, arm, salt or metric; a domain's name looks the same."""
Share = Annotated[float, Field(ge=0, le=1)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
_Version = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_FieldKey = Annotated[str, Field(pattern=r"^(user|context)\.[a-z][a-z0-9_]{0,63}$")]
_Value = Annotated[str, PlainValidator(_text)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Arm(_Part):
    """One way to answer: what differs from the answer outside the experiment. Nothing does in the control."""

    weight: Annotated[float, Field(ge=0, le=1e6)]
    """Its part of the experiment's units, in proportion to the sum over arms."""
    version: Annotated[dict[Name, _Version], Field(min_length=1)] | None = None
    """By domain: this version of its pack."""
    domain: Name | None = None
    """This other domain's pack."""
    bundle: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The pack that is live in this bundle."""
    fallback: Literal["general"] | None = None
    """The general pack, as if the domain had none of its own."""
    shadow: bool = False
    """It answers nothing: requests in it are answered as the control's, and scored as it would besides."""
    stopped: bool = False
    """Nobody is in it any more. Its part is not shared out, as that of a weight of 0 would be, so no unit of
    another arm moves."""

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it changes: one thing, or nothing."""
        return tuple(kind for kind in get_args(Change) if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        if len(self.changes) > 1:
            _refuse([((), f"an arm changes one thing, and this one {' and '.join(self.changes)}")])
        return self


class Step(_Part):
    """From when on which share of an experiment's slice is in it."""

    at: Moment
    share: Share


class Guardrail(_Part):
    """A bound that an arm's metric must keep, and what to do where it does not."""

    metric: Annotated[str, Field(pattern=r"^(ctr|ctr_lift|error_rate|calibration|p[1-9][0-9]_ms)$")]
    min: float | None = None
    max: float | None = None
    action: Literal["alert", "stop"]

    @property
    def bound(self) -> float:
        """The one that it has."""
        return self.min if self.min is not None else self.max or 0.0

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.min is None) == (self.max is None):
            _refuse([((), "a guardrail has one bound, `min` or `max`")])
        return self


class Trial(_Part):
    """How the trial of packs goes on by itself: they are promoted in the end, or taken back."""

    bundle: Annotated[str, Field(min_length=1, max_length=128)]
    """Whose packs they are."""
    against: dict[Name, _Version | None]
    """By domain, what was live when the trial began; if something else is, nothing is promoted."""
    shares: Annotated[tuple[Share, ...], Field(min_length=1)]
    """Of all units, how many the new pack gets in each step; as many get the old one beside it."""
    hold_seconds: Annotated[float, Field(gt=0)]
    """How long a step lasts at least."""
    margin: Annotated[float, Field(gt=0, lt=1)]
    """The relative loss of clicks that must be ruled out before the pack is promoted."""
    until: Moment
    """When it is taken back if that could not be ruled out."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(other <= one for one, other in pairwise((0.0, *self.shares))) or self.shares[-1] > 0.5:
            _refuse([(("shares",), "they must rise, from above 0 to 0.5 at most")])
        return self


class Experiment(_Part):
    """Arms, and which units of which requests are in them."""

    name: Name
    salt: Name | None = None
    """What sorts units into arms; by default the name. Another salt sorts all of them anew."""
    unit: Unit
    slice: tuple[Share, Share]
    """Which part of its layer it has: from, and up to but without."""
    domains: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Whose requests; by default every domain's."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    targeting: dict[_FieldKey, Annotated[tuple[_Value, ...], Field(min_length=1)]] = {}
    """By field, as `owner.name`, the values that a request may have; it must have one of each field."""
    ramp: tuple[Step, ...] = ()
    """By default all of the slice is in, at once."""
    start: Moment | None = None
    stop: Moment | None = None
    guardrails: tuple[Guardrail, ...] = ()
    trial: Trial | None = None
    """Only tools write it, in the layer that is theirs."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse([*self._time_faults(), *self._arm_faults()])
        return self

    def _time_faults(self) -> Iterator[tuple[_Loc, str]]:
        if self.slice[0] >= self.slice[1]:
            yield ("slice",), "it ends before it begins, or holds nothing"
        if self.start and self.stop and self.stop <= self.start:
            yield ("stop",), "not after `start`"
        for at, (one, other) in enumerate(pairwise(self.ramp), 1):
            if other.at <= one.at:
                yield ("ramp", at, "at"), "not after the step before"
            if other.share < one.share:
                yield ("ramp", at, "share"), f"{other.share:g} after {one.share:g}: a ramp does not shrink"

    def _arm_faults(self) -> Iterator[tuple[_Loc, str]]:
        if not any(arm.weight for arm in self.arms.values()):
            yield ("arms",), "all weights are 0"
        controls = [name for name, arm in self.arms.items() if not arm.changes]
        if len(controls) != 1:
            found = ", ".join(controls) or "none"
            yield ("arms",), f"one arm, the control, changes nothing; here {found}"
        if len(controls) == 1 and self.arms[controls[0]].stopped:
            yield (
                ("arms", controls[0], "stopped"),
                "the control cannot be stopped; give the experiment a `stop`",
            )
        for name, arm in self.arms.items():
            if arm.shadow and not arm.changes:
                yield ("arms", name, "shadow"), "it changes nothing, so there is nothing to score besides"
            # An arm that changes nothing in some of the domains would water down what it does in the others.
            if arm.version is not None and arm.version.keys() != set(self.domains or ()):
                yield ("arms", name, "version"), "it must name exactly the experiment's `domains`"

    @cached_property
    def control(self) -> str:
        """The arm that changes nothing."""
        return next(name for name, arm in self.arms.items() if not arm.changes)

    @cached_property
    def edges(self) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """Where each arm that has a weight ends in [0, 1], and the arms, by name; the last ends at 1.

        By name, so that the order in which a document has them means nothing.
        """
        weighted = sorted((name, arm.weight) for name, arm in self.arms.items() if arm.weight)
        sums = [*accumulate(weight for _, weight in weighted)]
        return tuple(total / sums[-1] for total in sums), tuple(name for name, _ in weighted)

    @cached_property
    def arm_salt(self) -> str:
        """The salt of positions among arms."""
        return f"arm:{self.salt or self.name}"

    @cached_property
    def targets(self) -> tuple[tuple[str, str, frozenset[str]], ...]:
        """`targeting` as owner, name and values."""
        parts = ((key.partition("."), values) for key, values in self.targeting.items())
        return tuple((owner, name, frozenset(values)) for (owner, _, name), values in parts)

    def end(self, now: float) -> float:
        """Where, in its layer, what is in it at a time ends; where its slice begins if nothing is.

        It never falls until the experiment stops, so a unit that is in stays in.

        Args:
            now: seconds since 1970.
        """
        times, ends = self._schedule
        return ends[bisect_right(times, now)]

    @cached_property
    def _schedule(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Times, ascending, and the end before, between and after them."""
        low, high = self.slice
        start = self.start.timestamp() if self.start else -math.inf
        stop = self.stop.timestamp() if self.stop else math.inf
        steps = [(step.at.timestamp(), step.share) for step in self.ramp] or [(start, 1.0)]
        ends = [
            (max(at, start), high if share == 1 else min(high, low + (high - low) * share))
            for at, share in steps
            if at < stop
        ]
        ends.append((stop, low))
        return tuple(at for at, _ in ends), (low, *(end for _, end in ends))


class Layer(_Part):
    """Experiments of which a unit is in one at most, because their slices do not overlap."""

    experiments: tuple[Experiment, ...]

    @cached_property
    def unit(self) -> Unit:
        """What all of them assign. Of a layer that has any."""
        return self.experiments[0].unit

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        faults: list[tuple[_Loc, str]] = [
            (("experiments", at, "unit"), f"not that of {self.experiments[0].name}, of the same layer")
            for at, experiment in enumerate(self.experiments)
            if experiment.unit != self.unit
        ]
        ascending = sorted(enumerate(self.experiments), key=lambda each: each[1].slice)
        for (_, one), (at, other) in pairwise(ascending):
            if other.slice[0] < one.slice[1]:
                faults.append((("experiments", at, "slice"), f"it overlaps that of {one.name}"))
        _refuse(faults)
        return self


class Experiments(_Part):
    """The whole document."""

    version: Literal[1]
    """Of the format."""
    holdout: Share = 0.0
    """The share of units that are in no experiment at all."""
    layers: dict[Name, Layer]
    """What a unit is in within one says nothing of what it is in within another."""

    @cached_property
    def by_name(self) -> dict[str, tuple[str, Experiment]]:
        """Every experiment, and before it its layer."""
        return {
            experiment.name: (name, experiment)
            for name, layer in self.layers.items()
            for experiment in layer.experiments
        }

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        faults: list[tuple[_Loc, str]] = []
        names: dict[str, str] = {}
        salts: dict[str, str] = {}
        placed = (
            (name, at, experiment)
            for name, layer in self.layers.items()
            for at, experiment in enumerate(layer.experiments)
        )
        for name, at, experiment in placed:
            place: _Loc = ("layers", name, "experiments", at)
            salt = experiment.salt or experiment.name
            if experiment.name in names:
                faults.append(((*place, "name"), f"{names[experiment.name]} has an experiment of this name"))
            # With one salt, a unit's arm in the one would tell its arm in the other.
            elif salt in salts:
                faults.append(((*place, "salt"), f"{salts[salt]} has the same"))
            if experiment.trial is not None and name != CANARY:
                faults.append(((*place, "trial"), f"only experiments of the layer {CANARY} have one"))
            names.setdefault(experiment.name, f"layers.{name}")
            salts.setdefault(salt, experiment.name)
        _refuse(faults)
        return self


def parse(data: bytes, *, canary: bool = False) -> Experiments:
    """Read a document.

    Args:
        data: JSON, in UTF-8.
        canary: whether it may have the layer that tools write.

    Raises:
        ExperimentsError: it is wrong.
    """
    try:
        text = data.decode()
        faults = [(loc, "it stands twice") for loc in twice(json.loads(text, object_pairs_hook=noting))]
        # From the text, because only so is an array a tuple where nothing is converted.
        found = Experiments.model_validate_json(text)
        if CANARY in found.layers and not canary:
            faults.append((("layers", CANARY), "only tools write this layer"))
        _refuse(faults)
    except ValidationError as error:
        raise ExperimentsError(
            "; ".join(_line(each["loc"], each["msg"]) for each in error.errors())
        ) from None
    except (ValueError, RecursionError) as error:
        raise ExperimentsError(f"the document is not JSON: {error}") from None
    return found


def _refuse(faults: list[tuple[_Loc, str]]) -> None:
    """Raise what pydantic raises, so that a fault found here has its whole place as every other."""
    if faults:
        raise ValidationError.from_exception_data(
            "document",
            [
                InitErrorDetails(
                    type=PydanticCustomError("fault", "{detail}", {"detail": detail}), loc=loc, input=None
                )
                for loc, detail in faults
            ],
        )


def _line(loc: _Loc, detail: str) -> str:
    place = ""
    for part in loc:
        if part != "[key]":
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return f"{place or 'the document'}: {detail}"

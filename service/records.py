"""What the life cycle of packs answers: one shape for the command line's JSON and for the admin API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict


class _Record:
    """What the texts below fields are: their descriptions, in the API's document."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True)
class DomainOverview(_Record):
    """A domain's line in the overview."""

    domain: str
    live: str | None
    """The live version; null for a domain that was retired, or never promoted."""
    since: float | None
    """When it became live, in seconds since 1970."""
    run: str
    """Where it came from, in the words of who promoted it."""
    by: str
    """Who promoted it."""
    bytes: int
    """Of the live pack."""
    kept: int
    """Versions that the store has."""


@dataclass(frozen=True)
class Step(_Record):
    """A step of a domain's history."""

    version: str | None
    """What became live; null retired the domain."""
    time: float
    """Seconds since 1970."""
    run: str
    """Where the pack came from, in the words of who promoted it."""
    by: str
    """Who promoted it."""


@dataclass(frozen=True)
class KeptVersion(_Record):
    """A pack that the store has."""

    version: str
    bytes: int
    promoted: float | None
    """When it last became live, in seconds since 1970; null if the history does not name it."""


@dataclass(frozen=True)
class DomainHistory(_Record):
    """All that the store knows of a domain."""

    domain: str
    live: str | None
    previous: str | None
    """Where a rollback would go."""
    history: list[Step]
    """Oldest first; the last hundred."""
    kept: list[KeptVersion]


@dataclass(frozen=True)
class Change(_Record):
    """What a step changes, or would change, for one domain."""

    domain: str
    before: str | None
    after: str | None
    """The same as `before` where there was nothing to do; null where the domain is retired."""


@dataclass(frozen=True)
class Put(_Record):
    """A pack that was put, or would be."""

    domain: str
    version: str
    bytes: int


@dataclass(frozen=True)
class Removed(_Record):
    """A pack that a collection takes, or would take."""

    domain: str
    version: str
    bytes: int


@dataclass(frozen=True)
class StoredTensor(_Record):
    """A tensor that the domain owns."""

    name: str
    shape: list[int]
    dtype: str
    """As the graph reads it."""
    stored: str
    """The type of its numbers in the file."""
    rows: int | None
    """Rows in the file, where the others are those of the bundle's general pack; null where all are there."""
    bytes: int
    """In the file."""


@dataclass(frozen=True)
class Contents(_Record):
    """What a pack holds."""

    domain: str
    version: str
    bytes: int
    """Of the file."""
    header: dict[str, Any]
    tensors: list[StoredTensor]
    calibration: tuple[float, float]
    """(a, b): the logit served is a * logit + b."""
    golden_rows: int


@dataclass(frozen=True)
class TensorDifference(_Record):
    """How far a tensor is from another version's."""

    name: str
    rows: int
    """Rows with a number that differs."""
    of_rows: int
    numbers: int
    """Numbers that differ."""
    of_numbers: int
    largest: float
    """The largest absolute difference."""
    rms: float
    """The root mean square of the differences, over all numbers."""


@dataclass(frozen=True)
class GoldenDifference(_Record):
    """How far apart the two score the golden rows of the second."""

    rows: int
    largest: float
    """The largest absolute difference of logits, before calibration."""
    rms: float
    """The root mean square of those differences."""
    probability: float
    """The largest absolute difference of the probabilities served."""


@dataclass(frozen=True)
class PackDifference(_Record):
    """How two versions of a domain differ."""

    domain: str
    a: str
    b: str
    tensors: list[TensorDifference]
    calibration_a: tuple[float, float]
    calibration_b: tuple[float, float]
    calibration: tuple[float, float]
    """The second's less the first's."""
    golden: GoldenDifference

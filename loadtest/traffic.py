"""`Traffic`: requests and clicks as users would send them, made of a bundle's schema and item ids alone.

The same seed gives the same requests. A user has the same fields whenever it comes back; which domain, which
user and which items are popular follows Zipf's law; how many candidates there are, a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Constraint

from loadtest.sender import request
from service.contract.bundle import Bundle
from service.contract.field import Field
from service.contract.schema import FeatureSchema

JSON = "Content-Type: application/json"
_STRANGERS = 1000
"""Values of a field of strings whose values the schema does not list."""
_LONGEST = 5
"""Values of a field that takes lists, at most."""


class Mix(BaseModel):
    """What the traffic is like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domains_zipf: Annotated[float, Constraint(ge=0)] = 0.8
    """Exponent: 0 makes all equally popular."""
    items_zipf: Annotated[float, Constraint(ge=0)] = 1.0
    users_zipf: Annotated[float, Constraint(ge=0)] = 0.5
    users: Annotated[int, Constraint(ge=1)] = 10_000
    candidates: Mapping[int, float] = {50: 0.3, 200: 0.4, 500: 0.3}
    """Share of the requests by their number of candidates."""
    units: bool = False
    """Whether requests name the unit that experiments assign, as a client with cookies would."""
    click_rate: Annotated[float, Constraint(ge=0, le=1)] = 0.0
    """Share of the requests that are followed by a click."""

    @model_validator(mode="after")
    def _a_share_is_positive(self) -> Self:
        if not self.candidates or min(self.candidates) < 1 or min(self.candidates.values()) <= 0:
            raise ValueError("`candidates` needs counts of at least 1, each with a share above 0")
        return self


@dataclass(frozen=True)
class Asked:
    """One rank request."""

    domain: str
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    ids: tuple[Any, ...]
    unit: str | None = None

    @property
    def path(self) -> str:
        """Where it is sent."""
        return f"/v1/domains/{self.domain}/rank"

    @property
    def body(self) -> bytes:
        """As JSON, in columns."""
        unit = {} if self.unit is None else {"unit": self.unit}
        content = {"user": self.user, "context": self.context, "ids": self.ids, **unit}
        return json.dumps(content, separators=(",", ":")).encode()

    @property
    def http(self) -> bytes:
        """The whole HTTP request."""
        return request("POST", self.path, self.body, JSON)


class Traffic:
    """An endless stream of requests."""

    def __init__(
        self,
        schema: FeatureSchema,
        items: npt.NDArray[Any],
        domains: Sequence[str],
        mix: Mix | None = None,
        seed: int = 0,
    ) -> None:
        """Traffic for a model.

        Args:
            schema: which fields a request has, and what their values are like.
            items: ids of the items that there are.
            domains: most popular first.
            mix: what it is like.
            seed: of everything that is drawn.
        """
        self._schema, self._items, self._domains = schema, items, list(domains)
        self.mix = mix or Mix()
        self._seed = seed
        self._draw = np.random.default_rng([seed, 0])
        # Which items are popular has nothing to do with the order of their ids.
        self._popular = np.random.default_rng([seed, 1]).permutation(len(items))
        self._item_steps = _steps(len(items), self.mix.items_zipf)
        self._user_steps = _steps(self.mix.users, self.mix.users_zipf)
        self._domain_steps = _steps(len(self._domains), self.mix.domains_zipf)
        shares = np.array([*self.mix.candidates.values()])
        self._count_steps = np.cumsum(shares / shares.sum())
        self._counts = [*self.mix.candidates]

    @classmethod
    def of(cls, bundle: Bundle, mix: Mix | None = None, seed: int = 0) -> Traffic:
        """Traffic for a bundle's domains and items."""
        return cls(bundle.schema, bundle.items.keys, bundle.manifest.domains, mix, seed)

    def __iter__(self) -> Iterator[Asked]:
        while True:
            yield self.ask()

    def ask(self) -> Asked:
        """The next request."""
        user = self._place(self._user_steps)
        count = self._counts[self._place(self._count_steps)]
        places = np.searchsorted(self._item_steps, self._draw.random(count))
        known = self._fields("user", np.random.default_rng([self._seed, 2, user]))
        return Asked(
            self._domains[self._place(self._domain_steps)],
            {**known, "id": user},
            self._fields("context", self._draw),
            tuple(self._items[self._popular[places]].tolist()),
            f"unit-{user}" if self.mix.units else None,
        )

    def click(self, asked: Asked, request_id: str) -> dict[str, Any] | None:
        """An event for `POST /v1/events`, or none: most requests are followed by no click."""
        if self._draw.random() >= self.mix.click_rate:
            return None
        # The place of a click falls with its rank, as everywhere.
        place = min(int(self._draw.geometric(0.3)) - 1, len(asked.ids) - 1)
        return {
            "type": "click",
            "request_id": request_id,
            "domain": asked.domain,
            "user": asked.user["id"],
            "item": asked.ids[place],
        }

    def _place(self, steps: npt.NDArray[np.float64]) -> int:
        return int(np.searchsorted(steps, self._draw.random()))

    def _fields(self, owner: str, draw: np.random.Generator) -> dict[str, Any]:
        mine = (slot.field for slot in self._schema.scope("request") if slot.field.owner == owner)
        return {field.name: _value(field, draw) for field in mine}


def _value(field: Field, draw: np.random.Generator) -> Any:  # noqa: ANN401 - whatever the field takes
    if field.kind == "number":
        return round(float(draw.normal(field.mean, field.std)), 3)
    if field.size is not None:  # about as long as the vectors of language models, which is 1
        return [round(float(each), 4) for each in draw.normal(0, field.size**-0.5, field.size)]
    if field.multiple is not None:
        return [_single(field, draw) for _ in range(int(draw.integers(1, min(field.multiple, _LONGEST) + 1)))]
    return _single(field, draw)


def _single(field: Field, draw: np.random.Generator) -> int | str:
    if field.values:
        return field.values[int(draw.integers(len(field.values)))]
    one = int(draw.integers(field.buckets or _STRANGERS))
    return one if field.dtype == "int" else f"{field.name}-{one}"


def _steps(n: int, exponent: float) -> npt.NDArray[np.float64]:
    """(n,) cumulated shares of Zipf's law."""
    weight = 1.0 / np.arange(1, n + 1) ** exponent
    steps = np.cumsum(weight / weight.sum())
    steps[-1] = 1.0
    return steps

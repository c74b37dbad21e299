"""A source for benchmarks: as many items and domains as wished, eight fields a request and seven an item.

Its rows are drawn without much care for what clicks depend on; what counts here are sizes. Ids are hashed, so
that the tables have their size whatever the rows are.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Constraint

from service.contract.field import Field
from training.data.sources._protocol import Interactions

Count = Annotated[int, Constraint(ge=1)]

_BRANDS, _SHOPS, _CATEGORIES, _COUNTRIES = 1000, 500, 50, 40
_SPLITS = (0.8, 0.9)


class Options(BaseModel):
    """Sizes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domains: Count = 4
    items: Count = 20_000
    users: Count = 10_000
    rows: Count = 20_000
    seed: Annotated[int, Constraint(ge=0)] = 0


class Catalogue:
    """Items, users and clicks."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.fields = (
            Field(name="id", owner="user", kind="hashed", dtype="int", buckets=options.users),
            Field(name="age", owner="user", kind="hashed", dtype="int", buckets=16),
            Field(name="gender", owner="user", kind="hashed", dtype="int", buckets=4),
            Field(name="country", owner="user", kind="hashed", dtype="int", buckets=64),
            Field(name="hour", owner="context", kind="hashed", dtype="int", buckets=32),
            Field(name="weekday", owner="context", kind="hashed", dtype="int", buckets=8),
            Field(name="device", owner="context", kind="hashed", dtype="int", buckets=8),
            Field(name="page", owner="context", kind="hashed", dtype="int", buckets=128),
            Field(name="id", owner="item", kind="hashed", dtype="int", buckets=options.items),
            Field(name="category", owner="item", kind="hashed", dtype="int", buckets=64),
            Field(name="brand", owner="item", kind="hashed", dtype="int", buckets=_BRANDS),
            Field(name="shop", owner="item", kind="hashed", dtype="int", buckets=_SHOPS),
            Field(name="colour", owner="item", kind="hashed", dtype="int", buckets=32),
            Field(name="size", owner="item", kind="hashed", dtype="int", buckets=32),
            Field(name="age_days", owner="item", kind="hashed", dtype="int", buckets=64),
        )

    def interactions(self) -> Interactions:
        """Rows whose clicks depend on user, item and domain through a sum of random effects."""
        options = self._options
        random = np.random.default_rng([options.seed, 1])
        rows = options.rows
        user, item = random.integers(0, options.users, rows), random.integers(0, options.items, rows)
        domain = random.integers(0, options.domains, rows)
        effects = [random.normal(0, 0.7, size) for size in (options.users, options.items, options.domains)]
        logit = sum(effect[at] for effect, at in zip(effects, (user, item, domain), strict=True))
        click = random.random(rows) < 1 / (1 + np.exp(-logit))
        place = random.permutation(rows) / rows
        split = np.select([place < _SPLITS[0], place < _SPLITS[1]], ["train", "valid"], "test")
        frame = pl.DataFrame(
            {
                "domain": [f"d{at:05d}" for at in domain],
                "label": click.astype(np.int64),
                "item.id": item,
                "user.id": user,
                "user.age": user % 11,
                "user.gender": user % 3,
                "user.country": user % _COUNTRIES,
                "context.hour": random.integers(0, 24, rows),
                "context.weekday": random.integers(0, 7, rows),
                "context.device": random.integers(0, 5, rows),
                "context.page": random.integers(0, 100, rows),
                "split": split,
            }
        )
        return Interactions(frame=frame, protocol="drawn for benchmarks", dropped={})

    def items(self) -> pl.DataFrame:
        """The whole catalogue."""
        item = np.arange(self._options.items)
        random = np.random.default_rng([self._options.seed, 2])
        sizes = {
            "category": _CATEGORIES,
            "brand": _BRANDS,
            "shop": _SHOPS,
            "colour": 20,
            "size": 12,
            "age_days": 60,
        }
        columns = {f"item.{name}": random.integers(0, size, len(item)) for name, size in sizes.items()}
        return pl.DataFrame({"item.id": item, **columns})


def open(options: Options) -> Catalogue:  # noqa: A001 - the name every source has
    """The catalogue; nothing is drawn yet."""
    return Catalogue(options)

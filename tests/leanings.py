"""A source in which a user clicks what its vector, and the item's text, lean to the same side."""

from __future__ import annotations

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from service.contract.field import Field
from training.data.sources._protocol import Interactions

ROWS, ITEMS = 4000, 60
LIKED, DISLIKED = [1.0, 0.0, 0.2], [-1.0, 0.0, 0.2]
"""Texts, as the first number says: the second says nothing, the third is the same in all."""


class Options(BaseModel):
    """There are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Leanings:
    """Users of two minds, and items for each."""

    fields = (
        Field(name="mood", owner="user", kind="vector", size=2),
        Field(name="hour", owner="context", kind="hashed", dtype="int", buckets=8),
        Field(name="price", owner="item", kind="number"),
        Field(name="text", owner="item", kind="vector", size=3),
        Field(name="id", owner="item", kind="vocabulary", dtype="int"),
    )

    def interactions(self) -> Interactions:
        """Nine in ten clicks go to what leans as the user does."""
        draw = np.random.default_rng(0)
        user, item = draw.choice([-1.0, 1.0], ROWS), draw.integers(0, ITEMS, ROWS)
        agree = user == np.where(item % 2, -1.0, 1.0)
        click = draw.random(ROWS) < np.where(agree, 0.9, 0.1)
        frame = pl.DataFrame(
            {
                "domain": draw.choice(["a", "b"], ROWS),
                "label": click.astype(np.int8),
                "item.id": item,
                "user.mood": pl.Series(np.stack([user, draw.normal(0, 0.1, ROWS)], 1).tolist()),
                "context.hour": draw.integers(0, 24, ROWS),
                "time": np.arange(ROWS),
            }
        )
        return Interactions(frame=frame, protocol="drawn for tests")

    def items(self) -> pl.DataFrame:
        """Even items lean one way, odd ones the other; of some there is no text."""
        draw = np.random.default_rng(1)
        texts = [
            None if item >= ITEMS - 4 else [*(np.array(text) + draw.normal(0, 0.05, 3))]
            for item in range(ITEMS)
            for text in (DISLIKED if item % 2 else LIKED,)
        ]
        price = draw.normal(20, 5, ITEMS)
        return pl.DataFrame({"item.id": range(ITEMS), "item.price": price, "item.text": texts})


def open(options: Options) -> Leanings:  # noqa: A001 - the name every source has
    """Nothing is drawn yet."""
    del options
    return Leanings()

"""Douban: does a user rate a piece of music, a book or a film above 3?

Origin: the splits that PLATE published (github.com/Applied-Machine-Learning-Lab/PLATE, MIT licence), of
ratings that GA-DTCDR collected. Users are shared between the domains, items are not. There is no time,
profile, attribute or text: a model reads the two ids.

Read from `$MDCTR_DATA_DIR/douban/interactions.parquet`, with columns `user_id, item_id, domain, label,
rating, split` ('train', 'val' or 'test'), after a check against the `SHA256SUMS` beside the folder. The
rating is where the label comes from: it is no field, and only read where `grades` asks for a second target.
The reduced copy has none of films.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Constraint

from service.contract.errors import RunError
from service.contract.field import Field
from training.data.sources._protocol import Interactions
from training.data.sources._published import Checked, Published

_FILE = "interactions.parquet"
_COLUMNS = ("user_id", "item_id", "domain", "label", "split")
_PROTOCOLS = {
    "reduced": "Douban, reduced: music and book split as PLATE published them; movie trains on its published "
    "validation split, of which a tenth (seed {seed}) is validation, and tests on its published test split",
    "paper": "Douban, the paper's: all three domains split as PLATE published them",
}


class Options(BaseModel):
    """Which of the published splits to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Literal["reduced", "paper"] = "reduced"
    """`paper` needs movie's training split, which a reduced copy of the data does not have."""
    folder: Path | None = Constraint(default=None, exclude=True)
    """Where the data is; by default `$MDCTR_DATA_DIR/douban`. No part of what prepared data is known by."""
    seed: int = 0
    """Chooses movie's validation rows in the reduced protocol."""
    grades: Annotated[bool, Constraint(exclude_if=lambda grades: not grades)] = False
    """Keep the rating beside its label; without it nothing of what prepared data is known by changes."""


def open(options: Options) -> Douban:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return Douban(options.protocol, options.folder, options.seed, grades=options.grades)


class Douban(Checked):
    """The three domains of Douban."""

    fields = (
        Field(name="id", owner="user", kind="vocabulary", dtype="int"),
        Field(name="id", owner="item", kind="vocabulary", dtype="int"),
    )

    def __init__(
        self, protocol: Literal["reduced", "paper"], folder: Path | None, seed: int, *, grades: bool = False
    ) -> None:
        self._protocol, self._seed, self._grades = protocol, seed, grades
        self._published = Published("douban", [_FILE], folder)
        super().__init__(self._published)

    def interactions(self) -> Interactions:
        """All rows of the protocol, in the file's order.

        Raises:
            RunError: the data is not there, is not the published one, or lacks what the protocol needs.
        """
        frame = self._rows.with_columns(split=pl.col("split").replace({"val": "valid"}))
        unused = (pl.col("domain") == "movie") & (pl.col("split") == "train")
        extra = frame.filter(unused).height
        dropped: dict[str, int] = {}
        if self._protocol == "paper":
            if not extra:
                raise RunError(
                    "douban: protocol 'paper' needs movie's training split, which this copy of the data "
                    "does not have; protocol 'reduced' does without it"
                )
        else:
            frame = self._reduce(frame.filter(~unused))
            dropped = {"movie's training split, not in the reduced protocol": extra} if extra else {}
        return Interactions(frame, _PROTOCOLS[self._protocol].format(seed=self._seed), dropped)

    def items(self) -> pl.DataFrame:
        """Every item's id, ascending."""
        return self._rows.select("item.id").unique().sort("item.id")

    def _reduce(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Movie's validation rows become training rows, but for a seeded tenth."""
        splits = frame["split"].to_numpy(writable=True)
        published = ((frame["domain"] == "movie") & (frame["split"] == "valid")).to_numpy()
        movie = np.random.default_rng(self._seed).permutation(np.flatnonzero(published))
        splits[movie[len(movie) // 10 :]] = "train"
        return frame.with_columns(split=pl.Series(splits, dtype=pl.String))

    @cached_property
    def _rows(self) -> pl.DataFrame:
        rated = [pl.col("rating").cast(pl.Int64).alias("grade")] if self._grades else []
        return self._published.read(_FILE, (*_COLUMNS, *(["rating"] if rated else []))).select(
            "domain",
            pl.col("label").cast(pl.Int8),
            pl.col("user_id").cast(pl.Int64).alias("user.id"),
            pl.col("item_id").cast(pl.Int64).alias("item.id"),
            "split",
            *rated,
        )

"""Amazon's magazine subscriptions: does a reviewer give more than 3 stars?

Origin: the Amazon review data of 2018 (Ni et al., EMNLP 2019; UCSD), category Magazine Subscriptions. A
domain is the second level of the category path. Named ones of at least 1,000 rows are domains; of these 16
two of the mid-sized are held out, as domains that training has not seen. `only: held_out` gives their rows
alone, under the same two dates, so that what is trained on the others is judged on their test rows.

Read from `$MDCTR_DATA_DIR/amazon_magazines`, after a check against the `SHA256SUMS` beside the folder:

    interactions.parquet   user_id, item_id, domain, label (rating above 3), rating, timestamp (ms of a day)
    items.parquet          item_id, brand, category_path (levels separated by >), description_500, ..

The rating is where the label comes from, so it is not even read. Titles are missing at the origin for all
but items without a category: what names a magazine is its brand and its category path. A history holds
positives of earlier days, and of the seen domains only: nothing of a held-out one is in training.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Constraint

from service.contract.errors import RunError
from service.contract.field import Field
from training.data.prepare import BY_TIME
from training.data.sources._protocol import Interactions
from training.data.sources._published import Checked, Published

_MOST_LEVELS = 4
_LEVELS = pl.col("category_path").str.split(" > ").list.slice(1)
"""Of the category path, without the root that all magazines share."""


class Options(BaseModel):
    """Which domains are there, and which of them to give."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held_out: tuple[str, ...] = ("Children & Teen", "Travel, City & Regional")
    """Domains that training does not see, by their published names."""
    only: Literal["seen", "held_out"] = "seen"
    """The rows of the other domains, or of these."""
    least: Annotated[int, Constraint(ge=1)] = 1000
    """A category of fewer rows is no domain."""
    history: Annotated[int, Constraint(ge=0, le=1000)] = 5
    """At most so many items in `user.history`; 0 is no such field."""
    folder: Path | None = Constraint(default=None, exclude=True)
    """Where the data is; by default `$MDCTR_DATA_DIR/amazon_magazines`. No part of the data's identity."""


def open(options: Options) -> Magazines:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return Magazines(options)


class Magazines(Checked):
    """Reviews of magazine subscriptions, by category."""

    def __init__(self, options: Options) -> None:
        self._options = options
        files = ["interactions.parquet", "items.parquet"]
        self._published = Published("amazon_magazines", files, options.folder)
        super().__init__(self._published)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Ids, history, brand and category levels."""
        kept = self._options.history
        history = Field(name="history", owner="user", kind="vocabulary", multiple=kept or 1, min_count=2)
        return (
            Field(name="id", owner="user", kind="vocabulary", min_count=2),
            *([history] if kept else []),
            Field(name="id", owner="item", kind="vocabulary", min_count=2),
            Field(name="brand", owner="item", kind="vocabulary", min_count=5),
            Field(name="category", owner="item", kind="vocabulary", multiple=_MOST_LEVELS, min_count=5),
        )

    def interactions(self) -> Interactions:
        """The rows of the chosen domains, in the order of time.

        Raises:
            RunError: the data is not there, is not the published one, or has no domain that is held out.
        """
        given = self._published.read(
            "interactions.parquet", ["user_id", "item_id", "domain", "label", "timestamp"]
        ).select(
            "domain",
            pl.col("label").cast(pl.Int8),
            pl.col("timestamp").floordiv(1000).alias("time"),
            pl.col("user_id").alias("user.id"),
            pl.col("item_id").alias("item.id"),
        )
        distinct = given.unique(["user.id", "item.id", "time"], keep="first", maintain_order=True)
        large = distinct.filter(
            pl.len().over("domain") >= self._options.least, pl.col("domain").is_not_null()
        )
        rows = _dated(large.sort("time", maintain_order=True))
        unknown = {*self._options.held_out} - {*rows["domain"]}
        if unknown:
            raise RunError(f"amazon_magazines: no domain {' and no '.join(sorted(unknown))} to hold out")
        held_out = pl.col("domain").is_in(self._options.held_out)
        seen = rows.filter(~held_out)
        frame = seen if self._options.only == "seen" else rows.filter(held_out)
        if self._options.history:
            frame = _with_history(frame, seen.filter(pl.col("label") == 1), self._options.history)
        dropped = {
            "same user, item and day": given.height - distinct.height,
            "no category, or a small one": distinct.height - large.height,
            f"not among the domains asked for ({self._options.only})": rows.height - frame.height,
        }
        return Interactions(frame, self._protocol, {reason: n for reason, n in dropped.items() if n})

    def items(self) -> pl.DataFrame:
        """Every magazine's id, brand, category levels, a `name` of these, and `text` with a description."""
        name = pl.concat_str("brand", _LEVELS.list.join(" > "), separator=", ", ignore_nulls=True)
        text = pl.concat_str("name", "description_500", separator=". ", ignore_nulls=True)
        described = self._published.read("items.parquet").with_columns(name=_filled(name))
        return described.select(
            pl.col("item_id").alias("item.id"),
            pl.col("brand").alias("item.brand"),
            _LEVELS.alias("item.category"),
            "name",
            _filled(text).alias("text"),
        )

    @property
    def _protocol(self) -> str:
        held_out = " and ".join(sorted(self._options.held_out)) or "none"
        what = "the others" if self._options.only == "seen" else "these"
        return (
            f"Amazon Magazine Subscriptions: categories of {self._options.least:,} rows or more, 80/10/10 by "
            f"time over all of them; held out: {held_out}; the rows of {what}"
        )


def _filled(words: pl.Expr) -> pl.Expr:
    """Null where nothing is known."""
    return pl.when(words != "").then(words)


def _dated(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows in the order of time with `split`; those of one day stay together."""
    valid, test = (frame["time"][int(part * frame.height)] for part in BY_TIME)
    late = pl.when(pl.col("time") < test).then(pl.lit("valid")).otherwise(pl.lit("test"))
    return frame.with_columns(split=pl.when(pl.col("time") < valid).then(pl.lit("train")).otherwise(late))


def _with_history(frame: pl.DataFrame, liked: pl.DataFrame, most: int) -> pl.DataFrame:
    """With the items of each user's last `liked` rows from before a row's day."""
    rows = frame.with_row_index("at")
    pairs = rows.select("at", "user.id", day="time").join(
        liked.select("user.id", "item.id", "time"), on="user.id", maintain_order="left_right"
    )
    history = pl.col("item.id").tail(most).alias("user.history")
    found = pairs.filter(pl.col("time") < pl.col("day")).group_by("at", maintain_order=True).agg(history)
    return rows.join(found, on="at", how="left", maintain_order="left").drop("at")

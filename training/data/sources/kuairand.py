"""KuaiRand-Pure: does a user of a short-video app click on the video that one of its tabs shows?

Origin: kuairand.com (Gao et al., CIKM 2022), CC BY-SA 4.0; the standard log of 25 April to 7 May 2022.
A domain is a tab. Rows that repeat another one in every column are dropped, and rows of small tabs. A row
belongs to the split of its day in China: training to 4 May, validation 5 and 6 May, test 7 May.

Read from `$MDCTR_DATA_DIR/kuairand`, after a check against the `SHA256SUMS` beside the folder:

    interactions.parquet            user_id, item_id, domain (the tab), label (is_click), timestamp (ms), ..
    users.parquet                   the publisher's user features; user_id
    items.parquet                   the publisher's basic video features; item_id
    history_before_window.parquet   user_id, last_time_ms, watch_seq: item ids in the order of time; optional

What is no feature, because it is or may be from after the exposure:

* of the log, `play_time_ms`, `long_view` and every `is_*`; they are only compared, to find repeats;
* of the profile, what changes with use: the degree of activity, `is_*`, and the numbers and ranges of people
  followed, fans and friends. The publisher does not say when profiles were taken. The data does, nearly:
  no user was first seen before the day that lies `register_days` before 8 May, though six were first seen
  on that very day and about nine on each day after it. So profiles seem to be of 8 May, after the test rows.

`register_days` shifts with the calendar only, so its range stays. So do the encrypted `onehot_feat*`: what
they mean and when they were taken is not known; how well they tell who clicks has no clear trend by day.
A history gives no row anything from after it: of three users it runs into the log's first hour.
Of a video's columns those are used that its upload settles; the publisher's daily statistics are not read.
"""

from __future__ import annotations

from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Constraint

from service.contract.field import Field
from training.data.sources._protocol import Interactions
from training.data.sources._published import Checked, Published

_TABS = (0, 1, 2, 4, 6)
_VALID, _TEST = date(2022, 5, 5), date(2022, 5, 7)
"""The first days, in China, of validation and test."""
_ENCRYPTED = tuple(f"onehot_feat{at}" for at in range(18))
_MOST_TAGS = 3
_PROTOCOL = (
    "KuaiRand-Pure, standard log: tabs 0, 1, 2, 4 and 6, whole repeats dropped; by day in China, training to "
    "4 May, validation 5-6 May, test 7 May 2022"
)


class Options(BaseModel):
    """What to read beside the log, the users and the items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = Constraint(default=None, exclude=True)
    """Where the data is; by default `$MDCTR_DATA_DIR/kuairand`. No part of what prepared data is known by."""
    history: Annotated[int, Constraint(ge=0, le=1000)] = 0
    """`user.history`: so many of the last videos that the user watched before the log begins."""


def open(options: Options) -> KuaiRand:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return KuaiRand(options)


class KuaiRand(Checked):
    """Five tabs of the app."""

    def __init__(self, options: Options) -> None:
        self._history = options.history
        files = ["interactions", "users", "items", *(["history_before_window"] if self._history else [])]
        self._published = Published("kuairand", [f"{file}.parquet" for file in files], options.folder)
        super().__init__(self._published)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Ids, profile, hour in China, and what a video's upload settles."""
        return (
            Field(name="id", owner="user", kind="vocabulary", dtype="int", min_count=2),
            Field(name="register_days_range", owner="user", kind="vocabulary"),
            *(
                Field(name=name, owner="user", kind="vocabulary", dtype="int", min_count=5)
                for name in _ENCRYPTED
            ),
            *self._history_field(),
            Field(name="hour", owner="context", kind="vocabulary", dtype="int"),
            Field(name="id", owner="item", kind="vocabulary", dtype="int", min_count=2),
            Field(name="author_id", owner="item", kind="vocabulary", dtype="int", min_count=5),
            Field(name="video_type", owner="item", kind="vocabulary"),
            Field(name="upload_type", owner="item", kind="vocabulary", min_count=5),
            Field(name="music_type", owner="item", kind="vocabulary", dtype="int", min_count=5),
            Field(name="duration_band", owner="item", kind="vocabulary", dtype="int"),
            Field(
                name="tags", owner="item", kind="vocabulary", dtype="int", multiple=_MOST_TAGS, min_count=5
            ),
        )

    def interactions(self) -> Interactions:
        """All rows of the protocol, in the order of time.

        Raises:
            RunError: the data is not there, or is not the published one.
        """
        given = self._published.read("interactions.parquet")
        distinct = given.unique(maintain_order=True)
        rows = distinct.filter(pl.col("domain").is_in(_TABS)).sort("timestamp", maintain_order=True)
        dropped = {
            "whole repeats": given.height - distinct.height,
            "other tabs": distinct.height - rows.height,
        }
        moment = pl.from_epoch("timestamp", time_unit="ms").dt.offset_by("8h")  # China's clock
        day = moment.dt.date()
        later = pl.when(day < _TEST).then(pl.lit("valid")).otherwise(pl.lit("test"))
        frame = rows.select(
            pl.format("tab-{}", "domain").alias("domain"),
            "label",
            pl.when(day < _VALID).then(pl.lit("train")).otherwise(later).alias("split"),
            pl.col("timestamp").floordiv(1000).alias("time"),
            pl.col("user_id").cast(pl.Int64).alias("user.id"),
            moment.dt.hour().cast(pl.Int64).alias("context.hour"),
            pl.col("item_id").cast(pl.Int64).alias("item.id"),
        ).join(self._users(), on="user.id", how="left", maintain_order="left")
        if self._history:
            frame = self._with_history(frame)
        return Interactions(frame, _PROTOCOL, {reason: n for reason, n in dropped.items() if n})

    def items(self) -> pl.DataFrame:
        """Every video's id, author, kinds, tags, and how often a second has to double to reach its length."""
        return self._published.read("items.parquet").select(
            pl.col("item_id").alias("item.id"),
            pl.col("author_id").alias("item.author_id"),
            pl.col("video_type").cast(pl.String).alias("item.video_type"),
            pl.col("upload_type").cast(pl.String).alias("item.upload_type"),
            pl.col("music_type").cast(pl.Int64).alias("item.music_type"),
            (pl.col("video_duration") / 1000).log(2).floor().cast(pl.Int64).alias("item.duration_band"),
            pl.col("tag").cast(pl.String).str.split(",").cast(pl.List(pl.Int64)).alias("item.tags"),
        )

    def _history_field(self) -> tuple[Field, ...]:
        if not self._history:
            return ()
        kept = self._history
        return (
            Field(name="history", owner="user", kind="vocabulary", dtype="int", multiple=kept, min_count=2),
        )

    def _users(self) -> pl.DataFrame:
        users = self._published.read("users.parquet", ["user_id", "register_days_range", *_ENCRYPTED])
        return users.select(
            pl.col("user_id").cast(pl.Int64).alias("user.id"),
            pl.col("register_days_range").cast(pl.String).alias("user.register_days_range"),
            *(pl.col(name).cast(pl.Int64).alias(f"user.{name}") for name in _ENCRYPTED),
        )

    def _with_history(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With what each user watched last, in rows from after that; of three users a part is from later."""
        watched = self._published.read(
            "history_before_window.parquet", ["user_id", "last_time_ms", "watch_seq"]
        ).select(
            pl.col("user_id").cast(pl.Int64).alias("user.id"),
            pl.col("watch_seq").list.tail(self._history).cast(pl.List(pl.Int64)).alias("user.history"),
            ended=pl.col("last_time_ms").floordiv(1000),
        )
        joined = frame.join(watched, on="user.id", how="left", maintain_order="left")
        known = pl.when(pl.col("ended") < pl.col("time")).then(pl.col("user.history"))
        return joined.with_columns(known).drop("ended")

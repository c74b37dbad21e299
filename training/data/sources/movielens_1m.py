"""MovieLens 1M: does a user rate a film above 3?

Origin: grouplens.org/datasets/movielens/1m (Harper and Konstan, TiiS 2015); research use, no redistribution.
There are two cuts into domains:

    genre   the film's first genre, the rare ones grouped; all users are in several domains
              comedy 276,923   action 257,456   drama 208,625   horror 44,170
              crime 75,280 (Crime, Film-Noir, Mystery, Thriller)   family 58,425 (Animation, Children's)
              adventure 55,883 (Adventure, Fantasy, Sci-Fi)
              other 23,441 (Documentary, Musical, Romance, War, Western)
    age     the user's age, as Scenario-Wise-Rec cuts it: age_under_25 210,741, age_25_34 395,556,
            age_35_plus 393,906; no user is in two domains

Time is not known, so each user's rows are split 80/10/10 at random. Then the training rows of new items are
taken out, a sample of all splits is kept if `rows` asks for fewer, and of thin domains few training rows.

Read from `$MDCTR_DATA_DIR/movielens_1m`, after a check against the `SHA256SUMS` beside the folder:

    interactions.parquet   user_id, item_id, domain (of the age cut), label (rating above 3), rating
    items.parquet          item_id, item_title (ends with the year), genres (separated by |)
    users.parquet          user_id, gender, age (a band's first year), occupation (a number), zip_code

The rating is where the label comes from, so it is not even read. A history is of training positives, never
of the row's own item, and is drawn anew for each row. It is of one length for all rows of a user: were it
shorter only in the rows whose item is left out, it would say that they are positive.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Constraint

from service.contract.field import Field
from service.contract.hashing import bucket
from training.data.sources._lists import lists
from training.data.sources._protocol import Interactions
from training.data.sources._published import Checked, Published

_GENRES = {
    "Action": "action",
    "Adventure": "adventure",
    "Animation": "family",
    "Children's": "family",
    "Comedy": "comedy",
    "Crime": "crime",
    "Drama": "drama",
    "Fantasy": "adventure",
    "Film-Noir": "crime",
    "Horror": "horror",
    "Mystery": "crime",
    "Sci-Fi": "adventure",
    "Thriller": "crime",
}
"""Domains of the genre cut; genres that are not here are in the domain 'other'."""
_DOMAINS = {
    "genre": {*_GENRES.values(), "other"},
    "age": {"age_under_25", "age_25_34", "age_35_plus"},
}
_THIN = {"genre": ("crime", "family"), "age": ()}
_NEW_ITEMS = {"genre": 0.1, "age": 0.0}
_MOST_GENRES = 6
_AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 and over"}
_OCCUPATIONS = (
    *("other", "educator", "artist", "clerical worker", "college student", "customer service", "doctor"),
    *("executive", "farmer", "homemaker", "school student", "lawyer", "programmer", "retired", "sales"),
    *("scientist", "self-employed", "engineer", "craftsman", "unemployed", "writer"),
)
"""By the publisher's number."""

Part = Annotated[float, Constraint(ge=0, lt=1)]


class Options(BaseModel):
    """How to cut into domains, and what to take from the training rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cut: Literal["genre", "age"] = "genre"
    thin: tuple[str, ...] | None = None
    """Domains of which few training rows are kept; by default crime and family of the genre cut."""
    thin_rows: Annotated[int, Constraint(ge=1)] = 3000
    """So many."""
    new_items: Part | None = None
    """Share of the items without a training row; by default a tenth in the genre cut."""
    rows: Annotated[int, Constraint(ge=1)] | None = None
    """At most so many training rows before thinning; validation and test shrink alike."""
    history: Annotated[int, Constraint(ge=0, le=1000)] = 10
    """At most so many items in `user.history`; 0 is no such field."""
    folder: Path | None = Constraint(default=None, exclude=True)
    """Where the data is; by default `$MDCTR_DATA_DIR/movielens_1m`. No part of the data's identity."""
    seed: Annotated[int, Constraint(ge=0)] = 0

    @model_validator(mode="after")
    def _of_the_cut(self) -> Self:
        if unknown := {*(self.thin or ())} - _DOMAINS[self.cut]:
            raise ValueError(f"`thin` has {sorted(unknown)}; domains are {sorted(_DOMAINS[self.cut])}")
        return self


def open(options: Options) -> MovieLens:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return MovieLens(options)


class MovieLens(Checked):
    """A million ratings of films."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._thin = _THIN[options.cut] if options.thin is None else options.thin
        self._new_items = _NEW_ITEMS[options.cut] if options.new_items is None else options.new_items
        files = [f"{file}.parquet" for file in ("interactions", "items", "users")]
        self._published = Published("movielens_1m", files, options.folder)
        super().__init__(self._published)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Ids, profile, history, genres and year."""
        kept = self._options.history
        history = Field(
            name="history", owner="user", kind="vocabulary", dtype="int", multiple=kept or 1, min_count=2
        )
        return (
            Field(name="id", owner="user", kind="vocabulary", dtype="int", min_count=2),
            Field(name="gender", owner="user", kind="vocabulary"),
            Field(name="age", owner="user", kind="vocabulary"),
            Field(name="occupation", owner="user", kind="vocabulary"),
            Field(name="zip", owner="user", kind="vocabulary"),
            *([history] if kept else []),
            Field(name="id", owner="item", kind="vocabulary", dtype="int", min_count=2),
            Field(name="genres", owner="item", kind="vocabulary", multiple=_MOST_GENRES),
            Field(name="year", owner="item", kind="vocabulary", dtype="int"),
        )

    def interactions(self) -> Interactions:
        """All rows of the protocol, in the file's order.

        Raises:
            RunError: the data is not there, or is not the published one.
        """
        frame, dropped = self._without_some(self._split(self._rows()))
        frame = frame.join(self._users(), on="user.id", how="left", maintain_order="left")
        if self._options.history:
            frame = frame.with_columns(self._histories(frame).alias("user.history"))
        return Interactions(frame, self._protocol, {reason: n for reason, n in dropped.items() if n})

    def items(self) -> pl.DataFrame:
        """Every film's id, genres, year, its title as `name`, and a `text` with title and genres."""
        genres = pl.col("genres").str.split("|")
        return self._published.read("items.parquet").select(
            pl.col("item_id").cast(pl.Int64).alias("item.id"),
            genres.alias("item.genres"),
            pl.col("item_title").str.extract(r"\((\d{4})\)$").cast(pl.Int64).alias("item.year"),
            pl.col("item_title").alias("name"),
            pl.format("{}, a film of the genres {}", "item_title", genres.list.join(", ")).alias("text"),
        )

    @property
    def _protocol(self) -> str:
        parts = [f"MovieLens 1M by {self._options.cut}: each user's rows split 80/10/10 at random"]
        if self._new_items:
            parts.append(f"{self._new_items:.0%} of the items have no training row")
        if self._options.rows:
            parts.append(f"at most {self._options.rows:,} training rows before thinning")
        if self._thin:
            parts.append(f"{' and '.join(self._thin)} keep {self._options.thin_rows:,} training rows each")
        return "; ".join([*parts, f"seed {self._options.seed}"])

    def _random(self, what: str) -> np.random.Generator:
        """A stream of its own for each purpose: what one option draws, no other moves."""
        return np.random.default_rng([self._options.seed, bucket(what, 2**32)])

    def _rows(self) -> pl.DataFrame:
        given = self._published.read("interactions.parquet", ["user_id", "item_id", "domain", "label"])
        frame = given.select(
            "domain",
            pl.col("label").cast(pl.Int8),
            pl.col("user_id").cast(pl.Int64).alias("user.id"),
            pl.col("item_id").cast(pl.Int64).alias("item.id"),
        )
        if self._options.cut == "age":
            return frame
        domain = pl.col("item.genres").list.first().replace_strict(_GENRES, default="other")
        of_item = self.items().select("item.id", domain.alias("domain"))
        return frame.drop("domain").join(of_item, on="item.id", how="left", maintain_order="left")

    def _split(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With `split`: a tenth of each user's rows is for test, another for validation."""
        drawn = pl.Series("drawn", self._random("split").permutation(frame.height))
        place = (pl.col("drawn").rank("ordinal").over("user.id") - 0.5) / pl.len().over("user.id")
        later = pl.when(place < 0.2).then(pl.lit("valid")).otherwise(pl.lit("train"))
        split = pl.when(place < 0.1).then(pl.lit("test")).otherwise(later)
        return frame.with_columns(drawn).with_columns(split=split).drop("drawn")

    def _without_some(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """What the options leave of the rows, and how many are left out for which reason."""
        items = np.sort(self._published.read("items.parquet", ["item_id"])["item_id"].to_numpy())
        new = self._random("new items").permutation(items)[: round(self._new_items * len(items))].tolist()
        train, kept = frame["split"] == "train", np.ones(frame.height, bool)
        kept[(train & frame["item.id"].is_in(new)).to_numpy()] = False
        dropped = {"training rows of new items": int((~kept).sum())}

        rows = train.to_numpy() & kept
        if self._options.rows is not None and rows.sum() > self._options.rows:
            share, before, random = self._options.rows / rows.sum(), kept.sum(), self._random("rows")
            for split in ("train", "valid", "test"):
                inside = np.flatnonzero((frame["split"] == split).to_numpy() & kept)
                kept[random.permutation(inside)[round(share * len(inside)) :]] = False
            dropped["not in the sample"] = int(before - kept.sum())

        for domain in self._thin:
            inside = np.flatnonzero((train & (frame["domain"] == domain)).to_numpy() & kept)
            extra = self._random(f"thin {domain}").permutation(inside)[self._options.thin_rows :]
            kept[extra] = False
            dropped[f"training rows of {domain}, thinned"] = len(extra)
        return frame.filter(pl.Series(kept)), dropped

    def _users(self) -> pl.DataFrame:
        occupations = dict(enumerate(_OCCUPATIONS))
        return self._published.read("users.parquet").select(
            pl.col("user_id").cast(pl.Int64).alias("user.id"),
            pl.col("gender").alias("user.gender"),
            pl.col("age").replace_strict(_AGES, return_dtype=pl.String).alias("user.age"),
            pl.col("occupation").replace_strict(occupations, return_dtype=pl.String).alias("user.occupation"),
            pl.col("zip_code").str.head(1).alias("user.zip"),
        )

    def _histories(self, frame: pl.DataFrame) -> pl.Series:
        """For each row, some of the user's training positives other than the row's own item."""
        random, most = self._random("history"), self._options.history
        liked = frame.filter((pl.col("split") == "train") & (pl.col("label") == 1)).select(
            "user.id", "item.id"
        )
        liked = liked[random.permutation(liked.height)].sort("user.id", maintain_order=True)
        users = int(frame["user.id"].max()) + 1  # type: ignore[arg-type]
        count = np.bincount(liked["user.id"].to_numpy(), minlength=users)
        first, user = np.cumsum(count) - count, frame["user.id"].to_numpy()
        count, first = count[user], first[user]

        # A window of one item too many, from anywhere in the user's positives; one of it is left out.
        size = np.minimum(count, most + 1)
        start = random.integers(0, np.maximum(count, 1))
        column = np.arange(most + 1)
        place = first[:, None] + (start[:, None] + column) % np.maximum(count, 1)[:, None]
        item = np.append(liked["item.id"].to_numpy(), -1)[np.minimum(place, liked.height)]
        inside = column < size[:, None]
        own = inside & (item == frame["item.id"].to_numpy()[:, None])
        last = (column == size[:, None] - 1) & ~own.any(axis=1, keepdims=True)
        return lists(item, inside & ~own & ~last)

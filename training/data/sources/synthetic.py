"""A click simulator whose click probabilities are known, so that a model's distance from the best is too.

A click has probability sigmoid(logit), with

    logit = intercept_d + strength * (sqrt(1 - c) taste_d(user, item) + sqrt(c) context(hour, device))
    taste_d = sqrt(1 - w) shared(user, item) + sqrt(w) own_d(user, item)

where c is the context's share of the variance, w is `domain_share`, and `shared` and `own_d` each are main
effects plus an inner product of latent vectors. Both are sums over the profile's, or the attributes',
values; `id_share` of a main effect's variance belongs to the single user or item. All of it has mean 0 and
variance 1 over users and items, so `strength` is the logit's deviation within a domain.

With `drift`, taste_d turns with the days: cos(a) taste_d + sin(a) later_d, where later_d is one more taste
that is drawn the same way and a grows from 0 to `drift` times a right angle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Constraint

from service.contract.field import Field
from service.contract.hashing import bucket
from training.data.sources._protocol import Interactions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Part = Annotated[float, Constraint(ge=0, le=1)]
Count = Annotated[int, Constraint(ge=1)]

_AGES = ("under-18", "18-24", "25-34", "35-44", "45-54", "55-up")
_GENDERS = ("female", "male", None)
_COUNTRIES = ("at", "br", "cn", "de", "in", "jp", "ng", "us")
_CATEGORIES = ("audio", "books", "garden", "kitchen", "phones", "shoes", "sports", "toys")
_BRANDS = tuple(head + tail for head in ("alto", "bora", "cima", "dova") for tail in ("lux", "nix", "tek"))
_TAGS = ("compact", "eco", "gift", "kids", "outdoor", "sale", "smart", "wireless")
DEVICES = ("desktop", "phone", "tablet", "tv")

_EPOCH = 1_704_067_200
"""Midnight of 1 January 2024, UTC, in seconds."""
_DAY = 86_400
_MOST_TAGS = 3
_LATENT = 2
"""Length of a latent vector."""
_MAIN = 0.7
"""Share of a taste's variance that is main effects rather than an inner product."""
_CONTEXT = 0.08
"""c: share of the logit's variance that is the context's."""
_HIGHEST, _LOWEST = -0.4, -1.8
"""Intercepts of the first and the last domain, by name."""
_HELD_OUT = 0.1
"""Of the days, for validation and for test each, where rows come in parts."""
_LATE = 0.8
"""Late users and items first appear between this part of the time and its end."""


class Options(BaseModel):
    """How many rows of which domains, and what clicks depend on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domains: dict[str, Count] = Constraint(
        default={"feed": 70_000, "shop": 30_000, "ads": 15_000, "new": 5_000}, min_length=1
    )
    """Rows of each domain."""
    users: Annotated[int, Constraint(ge=10)] = 1_000
    items: Annotated[int, Constraint(ge=10)] = 600
    days: Count = 28
    """Over how many days the rows are spread."""
    domain_share: Part = 0.3
    """Share of the taste's variance that differs between domains; 0 is one taste for all."""
    id_share: Part = 0.05
    """Share of a main effect's variance that no profile or attribute explains."""
    late_share: Part = 0.1
    """Share of the users, and of the items, seen only late, so that some are new in the test rows."""
    strength: Annotated[float, Constraint(ge=0, le=10)] = 1.3
    """Deviation of the logit within a domain: the larger, the better clicks can be told."""
    seed: Annotated[int, Constraint(ge=0)] = 0
    # What follows is left out of what a run is known by where it is not used, as it came later.
    drift: Annotated[float, Constraint(ge=0, le=1, exclude_if=lambda drift: drift == 0)] = 0.0
    """How far tastes turn from the first day to the last; 1 is to one that the first says nothing of."""
    since: Annotated[int, Constraint(ge=0, exclude_if=lambda day: day == 0)] = 0
    """The first day whose rows are given, counted from 0; the world is the same whatever is given of it."""
    until: Annotated[int | None, Constraint(ge=1, exclude_if=lambda day: day is None)] = None
    """The day before which rows end; by default all days."""
    held_out: Annotated[float | None, Constraint(gt=0, lt=0.5, exclude_if=lambda part: part is None)] = None
    """Share of the given days that is test, and before it as much validation; by default both are a tenth."""
    part: Annotated[int | None, Constraint(ge=1, exclude_if=lambda part: part is None)] = None
    """About so many rows are drawn at a time, for more than fit into memory; by default all at once."""

    @model_validator(mode="after")
    def _some_days(self) -> Self:
        if not self.since < min(self.until or self.days, self.days):
            raise ValueError(f"no day is from `since`, {self.since}, to before `until` and `days`")
        return self


def open(options: Options) -> Synthetic:  # noqa: A001 - the name every source has
    """The simulator; nothing is drawn yet."""
    return Synthetic(options) if options.part is None else Parted(options, options.part)


class Synthetic:
    """Simulated users, items and clicks. What is drawn depends on the options only, not on their order."""

    fields = (
        Field(name="id", owner="user", kind="vocabulary", min_count=5),
        Field(name="age_band", owner="user", kind="vocabulary"),
        Field(name="gender", owner="user", kind="vocabulary"),
        Field(name="country", owner="user", kind="vocabulary"),
        Field(name="account_age_days", owner="user", kind="number"),
        Field(name="hour", owner="context", kind="vocabulary", dtype="int"),
        Field(name="device", owner="context", kind="vocabulary"),
        Field(name="id", owner="item", kind="vocabulary", min_count=5),
        Field(name="category", owner="item", kind="vocabulary"),
        Field(name="brand", owner="item", kind="hashed", buckets=512),
        Field(name="price", owner="item", kind="number"),
        Field(name="tags", owner="item", kind="vocabulary", multiple=_MOST_TAGS),
    )

    def __init__(self, options: Options) -> None:
        self._options = options

    def interactions(self) -> Interactions:
        """All rows in the order of time, with the click's true `probability`."""
        counts = [self._options.domains[name] for name in self._names]
        days = 0, self._options.days * _DAY
        frame = self._rows(counts, days, "")
        options = self._options
        if options.since or options.until is not None:
            frame = frame.filter(self._given())
        if options.held_out is not None:
            frame = self._split(frame)
        return Interactions(frame, self._protocol)

    @property
    def _names(self) -> list[str]:
        return sorted(self._options.domains)

    @property
    def _protocol(self) -> str:
        options = self._options
        drift = f", and turns by {options.drift:.0%} of a right angle" if options.drift else ""
        taste = f"the taste is {options.domain_share:.0%} domain-specific{drift}"
        return f"synthetic clicks of seed {options.seed}; {taste}"

    @property
    def _days(self) -> tuple[int, int]:
        """Of the rows that are given: the first, and the one after the last."""
        options = self._options
        return options.since, min(options.until or options.days, options.days)

    def _given(self) -> pl.Expr:
        first, end = (_EPOCH + day * _DAY for day in self._days)
        return pl.col("time").is_between(first, end, closed="left")

    def _split(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With `split`: the last of the given days, or parts of one, are held out."""
        first, end = (_EPOCH + day * _DAY for day in self._days)
        out = (self._options.held_out or _HELD_OUT) * (end - first)
        held = pl.when(pl.col("time") < end - out).then(pl.lit("valid")).otherwise(pl.lit("test"))
        early = pl.col("time") < end - 2 * out
        return frame.with_columns(split=pl.when(early).then(pl.lit("train")).otherwise(held))

    def _rows(self, counts: Sequence[int], seconds: tuple[int, int], part: str) -> pl.DataFrame:
        """Rows of so many of each domain between two moments, in seconds from the first, in order of time."""
        options, names = self._options, self._names
        random = self._random(f"rows{part}")
        domain = random.permutation(np.repeat(np.arange(len(names)), counts))
        rows = len(domain)
        time = np.sort(random.integers(*seconds, rows))
        hour, device = time // 3600 % 24, random.integers(0, len(DEVICES), rows)
        user, item = np.empty(rows, np.int64), np.empty(rows, np.int64)
        probability = np.empty(rows)
        for at, name in enumerate(names):
            inside = np.flatnonzero(domain == at)
            when = time[inside] / (options.days * _DAY)
            user[inside] = self._visits("user", name, options.users, when, part)
            item[inside] = self._visits("item", name, options.items, when, part)
            probability[inside] = self.probability(
                name, user[inside], item[inside], hour[inside], device[inside], when=when
            )
        frame = pl.DataFrame(
            {
                "domain": pl.Series(names, dtype=pl.String).gather(domain),
                "label": (random.random(rows) < probability).astype(np.int8),
                "time": time + _EPOCH,
                "context.hour": hour,
                "context.device": pl.Series(DEVICES).gather(device),
                "item.id": self._item_ids.gather(item),
                "probability": probability,
            }
        )
        return frame.hstack(self.users[user])

    def items(self) -> pl.DataFrame:
        """Every item's id, category, brand, price, tags, and a `name` and a `text` of those words."""
        category, brand, price, tags = self._attributes
        listed = [[_TAGS[tag] for tag in np.flatnonzero(row)] for row in tags]
        frame = pl.DataFrame(
            {
                "item.id": self._item_ids,
                "item.category": pl.Series(_CATEGORIES).gather(category),
                "item.brand": pl.Series(_BRANDS).gather(brand),
                "item.price": price,
                "item.tags": pl.Series(listed, dtype=pl.List(pl.String)),
            }
        )
        tagged = pl.concat_str(pl.lit(", tagged "), pl.col("item.tags").list.join(", "))
        return frame.with_columns(
            name=pl.format("{} {}", "item.brand", "item.category"),
            text=pl.format(
                "a product of {}, for {}{}",
                "item.brand",
                "item.category",
                pl.when(pl.col("item.tags").list.len() > 0).then(tagged).otherwise(pl.lit("")),
            ),
        )

    @cached_property
    def _item_ids(self) -> pl.Series:
        return pl.Series([f"item-{at:05d}" for at in range(self._options.items)])

    def probability(
        self, domain: str, user: Ints, item: Ints, hour: Ints, device: Ints, *, when: Floats | float = 0.0
    ) -> Floats:
        """The true probability of a click, of arrays that are broadcast.

        Args:
            domain: where.
            user: rows of `users`.
            item: rows of `items()`.
            hour: 0 to 23.
            device: positions in `DEVICES`.
            when: from 0, the first moment, to 1, the last; without drift it is all the same.
        """
        names = self._names
        intercept = np.linspace(_HIGHEST, _LOWEST, len(names))[names.index(domain)]
        of_user, of_item = self.taste(domain)
        taste = (of_user[user] * of_item[item]).sum(axis=-1)
        if self._options.drift:
            angle = self._options.drift * math.pi / 2 * np.asarray(when)
            of_user, of_item = self.taste(domain, ", later")
            taste = np.cos(angle) * taste + np.sin(angle) * (of_user[user] * of_item[item]).sum(axis=-1)
        inner = math.sqrt(1 - _CONTEXT) * taste + math.sqrt(_CONTEXT) * self._context(hour, device)
        return np.asarray(1 / (1 + np.exp(-(intercept + self._options.strength * inner))))

    def taste(self, domain: str, turned: str = "") -> tuple[Floats, Floats]:
        """What decides about clicks beside intercept and context.

        Args:
            domain: where.
            turned: ", later" for the taste that it turns to.

        Returns:
            Vectors of the users (users, R) and of the items (items, R); the inner product of a user's and
            an item's is the taste, of mean 0 and deviation 1 over all pairs.
        """
        share = self._options.domain_share
        shared_users, shared_items = self._vectors(f"shared{turned}")
        own_users, own_items = self._vectors(f"domain {domain}{turned}")
        users = np.hstack([math.sqrt(1 - share) * shared_users, math.sqrt(share) * own_users])
        items = np.hstack([shared_items, own_items])
        # Over all pairs the mean square of <u, v> is <U'U/n, V'V/m>; the mean is 0, as every vector's is.
        square = ((users.T @ users) * (items.T @ items)).sum() / (len(users) * len(items))
        return users / math.sqrt(square), items

    def _random(self, what: str) -> np.random.Generator:
        """A stream of its own for each purpose: one more domain leaves users and items as they are."""
        return np.random.default_rng([self._options.seed, bucket(what, 2**32)])

    @cached_property
    def _profiles(self) -> tuple[Ints, Ints, Ints, Floats]:
        """Age band, gender, country, and account age in days, of each user."""
        random, users = self._random("users"), self._options.users
        age, country = random.integers(0, len(_AGES), users), random.integers(0, len(_COUNTRIES), users)
        gender = random.choice(len(_GENDERS), users, p=(0.47, 0.47, 0.06))
        return age, gender, country, np.round(random.uniform(0, 3_000, users))

    @cached_property
    def users(self) -> pl.DataFrame:
        """Every user's id, age band, gender, country and age of the account."""
        age, gender, country, days = self._profiles
        return pl.DataFrame(
            {
                "user.id": [f"user-{at:05d}" for at in range(self._options.users)],
                "user.age_band": pl.Series(_AGES).gather(age),
                "user.gender": pl.Series(_GENDERS, dtype=pl.String).gather(gender),
                "user.country": pl.Series(_COUNTRIES).gather(country),
                "user.account_age_days": days,
            }
        )

    @cached_property
    def _attributes(self) -> tuple[Ints, Ints, Floats, npt.NDArray[np.bool_]]:
        """Category, brand and price of each item, and which tags it has (items, tags)."""
        random, items = self._random("items"), self._options.items
        category, brand = random.integers(0, len(_CATEGORIES), items), random.integers(0, len(_BRANDS), items)
        price = np.round(5 + 195 * random.beta(2, 4, items), 2)
        order = random.random((items, len(_TAGS))).argsort(axis=1).argsort(axis=1)
        return category, brand, price, order < random.integers(0, _MOST_TAGS + 1, items)[:, None]

    def _visits(self, what: str, domain: str, n: int, when: Floats, part: str) -> Ints:
        """Who comes, or is shown, at each moment `when` (0..1): nobody before their own time."""
        late = self._random(f"{what} births")
        births = np.where(late.random(n) < self._options.late_share, late.uniform(_LATE, 1, n), 0.0)
        births[0] = 0.0  # somebody is there from the start, whatever the share
        random = self._random(f"{what} visits in {domain}")
        weights = random.lognormal(0, 0.7, n)
        if part:
            random = self._random(f"{what} visits in {domain}{part}")
        drawn = random.choice(n, len(when), p=weights / weights.sum())
        early = np.flatnonzero(births[drawn] > when)
        old = np.flatnonzero(births == 0)
        drawn[early] = random.choice(old, len(early), p=weights[old] / weights[old].sum())
        return drawn

    def _vectors(self, what: str) -> tuple[Floats, Floats]:
        """Vectors of users and items (n, _LATENT + 2), whose inner product is main effects plus a match."""
        random, width = self._random(f"taste, {what}"), _LATENT + 1
        age, gender, country, days = self._profiles
        user = _one_hot(age, len(_AGES)), _one_hot(gender, len(_GENDERS)), _one_hot(country, len(_COUNTRIES))
        category, brand, price, tags = self._attributes
        mean_tag = tags / np.maximum(tags.sum(axis=1, keepdims=True), 1)
        item = _one_hot(category, len(_CATEGORIES)), _one_hot(brand, len(_BRANDS)), mean_tag
        users = self._latent(random, (*user, days[:, None]), width)
        items = self._latent(random, (*item, price[:, None]), width)
        main, match = math.sqrt(_MAIN / 2), math.sqrt((1 - _MAIN) / _LATENT)
        left = main * users[:, :1], np.full((len(users), 1), main), match * users[:, 1:]
        return np.hstack(left), np.hstack([np.ones((len(items), 1)), items[:, :1], items[:, 1:]])

    def _latent(self, random: np.random.Generator, parts: tuple[Floats, ...], width: int) -> Floats:
        """(n, width) of mean 0, variance 1: linear in `parts` (n, ...) of equal weight, but for a rest."""
        known = sum(_scaled(_scaled(part) @ random.normal(size=(part.shape[1], width))) for part in parts)
        # Only the main effect has a rest: one that depended on the other side could not be learned.
        vectors, own = _scaled(np.asarray(known)), _scaled(random.normal(size=(len(parts[0]), 1)))
        share = self._options.id_share
        vectors[:, :1] = math.sqrt(1 - share) * vectors[:, :1] + math.sqrt(share) * own
        return vectors

    def _context(self, hour: Ints, device: Ints) -> Floats:
        """An evening peak and a preference of devices, together of variance 1."""
        daily = math.sqrt(2) * np.cos((np.arange(24) - 20) * 2 * math.pi / 24)
        liked = _scaled(self._random("devices").normal(size=(len(DEVICES), 1)))[:, 0]
        return np.asarray((daily[hour] + liked[device]) / math.sqrt(2))


class Parted(Synthetic):
    """The simulator, a slice of time after the other; a part's rows do not depend on those before it."""

    def __init__(self, options: Options, part: int) -> None:
        super().__init__(options)
        self._part = part

    def parts(self) -> Iterator[Interactions]:
        """Rows in the order of time, with the `split` that their time puts them in."""
        options = self._options
        counts = np.array([options.domains[name] for name in self._names])
        n = -(-int(counts.sum()) // self._part)
        ends = np.arange(n + 1)
        of_domain, seconds = counts * ends[:, None] // n, options.days * _DAY * ends // n
        for at in range(n):
            first, end = int(seconds[at]), int(seconds[at + 1])
            if end <= self._days[0] * _DAY or first >= self._days[1] * _DAY:
                continue
            frame = self._rows((of_domain[at + 1] - of_domain[at]).tolist(), (first, end), f", part {at}")
            yield Interactions(self._split(frame.filter(self._given())), self._protocol)

    def interactions(self) -> Interactions:
        """All parts, in memory."""
        return Interactions(pl.concat(part.frame for part in self.parts()), self._protocol)


def _one_hot(values: Ints, size: int) -> Floats:
    return np.eye(size)[values]


def _scaled(columns: Floats) -> Floats:
    """Columns with mean 0 and deviation 1; a constant one becomes 0."""
    centred = columns - columns.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.asarray(centred / np.where(deviation > 1e-12, deviation, 1.0))

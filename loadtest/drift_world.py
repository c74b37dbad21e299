"""`DriftWorld`: a week of a service's counters, as Prometheus would read them, with shifts at known moments.

There is a domain for each of `RATES`; requests come by the hour of the day and the day of the week. Users are
those of `loadtest.users`, and an item's logit is the user's with something of its own. The ten best of a
hundred candidates are shown, and clicked with their probability where they are looked at, which falls with
the position; so clicks are always fewer than predicted, by as much. Users have moods, and clicks come late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from loadtest.users import Users
from service.drift import EDGES
from service.telemetry import SAMPLED

Floats = npt.NDArray[np.float64]
Kind = Literal["logits", "unknown", "defaults", "lost"]

STEP = 30
"""Seconds between two scrapes."""
DAY = 86400 // STEP
"""Steps of a day."""
WEEK = 7 * DAY
RATES: Mapping[str, float] = {
    "d0": 50.0,
    "d1": 30.0,
    "d2": 16.0,
    "d3": 10.0,
    "d4": 6.0,
    "d5": 3.0,
    "d6": 2.0,
    "d7": 1.0,
    "d8": 0.5,
    "d9": 0.2,
}
"""Requests a second, on average over a week."""
QUIET = 4
"""The hour with the least requests; a fifth of the most."""
_CANDIDATES, _SHOWN = 100, 10
_POOL = 4000
"""Different requests of a domain."""
_ITEM_SPREAD = 0.8
"""Standard deviation of what an item adds to the logit."""
_MOOD = 0.3
"""Variance of what a request's click probabilities are multiplied with."""
_LAG, _LAG_SPREAD = 20.0, 1.0
"""Seconds until a click comes: the median, and the standard deviation of the logarithm."""
_PACK = 0.025
"""Standard deviation of the error that a good pack has in all its logits."""
_HOURLY = 0.04
"""By how much calibration rises and falls over a day."""
FIELDS: Mapping[str, tuple[float, float]] = {
    "user.age": (1.0, 0.02),
    "user.genres": (2.5, 0.05),
    "context.hour": (1.0, 0.0),
    "item.id": (float(_CANDIDATES), 0.03),
}
"""By field, values of a request and the share of them that is unknown."""


@dataclass(frozen=True)
class Shift:
    """Something goes wrong, and is put right after a while."""

    kind: Kind
    start: int
    """Step of its beginning."""
    steps: int = 30
    domain: str | None = None
    """Where; None for everywhere."""
    size: float = 0.0
    """Added to all logits; or the share of clicks that is lost; or of values that become unknown."""


@dataclass(frozen=True)
class _Pool:
    """Requests of a domain under one pack; (R,) each."""

    probability: Floats
    variance: Floats
    clicks: Floats
    """Expected, of a calm user."""
    buckets: Floats
    """(R, edges + 1): in which the score is that is measured."""

    @classmethod
    def draw(cls, random: np.random.Generator, domain: int, off: float, *, defaults: bool) -> _Pool:
        """Requests as they come.

        Args:
            random: the same gives the same requests, whatever the pack does.
            domain: its place; domains differ in how often they are clicked.
            off: by what the pack's logits are off.
            defaults: whether the pack knows nothing of the user and little of the items.
        """
        users = replace(Users(), click_rate=0.03 + 0.01 * (domain % 4))
        seen, rate = users.draw(random, _POOL)
        rate = random.choice(rate, _POOL, p=seen / seen.sum())
        of_user = np.log(rate / (1 - rate))[:, None]
        of_item = _ITEM_SPREAD * random.standard_normal((_POOL, _CANDIDATES))
        logit = of_user + of_item
        told = (of_user.mean() + 0.3 * of_item if defaults else logit) + off
        best = np.argsort(-told, axis=1)[:, :_SHOWN]
        scores, shown = _sigmoid(told), np.take_along_axis(_sigmoid(told), best, 1)
        looked = 1 / (1 + 0.15 * np.arange(_SHOWN))
        clicks = (np.take_along_axis(_sigmoid(logit), best, 1) * looked).sum(1)
        # A score is as good as any other: candidates come in no order.
        buckets = (np.searchsorted(EDGES, scores[:, :1]) == np.arange(len(EDGES) + 1)).astype(float)
        return cls(shown.sum(1), (shown * (1 - shown)).sum(1), clicks, buckets)


class DriftWorld:
    """The counters of a week, by series."""

    def __init__(self, seed: int, shifts: Sequence[Shift] = (), steps: int = WEEK) -> None:
        """Simulate.

        Args:
            seed: of all that is drawn.
            shifts: what goes wrong.
            steps: how long.
        """
        self.steps = steps
        self._random = np.random.default_rng([seed, 0])
        self._seed = seed
        self.added: dict[str, Floats] = {}
        """By series, what each step adds to it: (steps,)."""
        self.restarts = sorted(self._random.integers(DAY, max(steps, DAY + 1), 2).tolist())
        requests = np.zeros(steps)
        for at, domain in enumerate(RATES):
            requests += self._domain(
                at, domain, [shift for shift in shifts if shift.domain in {None, domain}]
            )
        self._fields(requests, [shift for shift in shifts if shift.kind == "unknown"])

    def counters(self) -> dict[str, Floats]:
        """What each series says at each scrape: (steps,). A restart begins all of them anew."""
        begins = sorted({0, *(at for at in self.restarts if at < self.steps), self.steps})
        return {
            name: np.concatenate([added[a:b].cumsum() for a, b in pairwise(begins)])
            for name, added in self.added.items()
        }

    def expected(self, domain: str, at: int) -> float:
        """Clicks of five minutes as they were in the quarter of an hour before a step."""
        before = slice(at - 900 // STEP, at)
        return float(self.added[_name("mdctr_clicked_total", domain=domain)][before].sum()) / 3

    def mean(self, domain: str) -> float:
        """Clicks of five minutes, on average."""
        return float(self.added[_name("mdctr_clicked_total", domain=domain)].mean()) * 300 / STEP

    def moved(self, domain: str, size: float) -> float:
        """By what share clicks over predicted clicks change where all logits are off by so much.

        A probability p becomes about p exp(size (1 - p)), and 1 - p is, on average over what is predicted,
        the sum of the variances over that of the probabilities.
        """
        variance, predicted = (
            self.added[_name(f"mdctr_shown_{name}_total", domain=domain)][:DAY].sum()
            for name in ("variance", "probability")
        )
        return abs(float(np.expm1(-size * variance / predicted)))

    def ratio(self, domain: str) -> Floats:
        """(steps,) clicks over predicted clicks of the last five minutes."""
        clicked, predicted = (
            np.convolve(self.added[_name(name, domain=domain)], np.ones(10))[: self.steps]
            for name in ("mdctr_clicked_total", "mdctr_shown_probability_total")
        )
        found: Floats = np.divide(clicked, predicted, out=np.full(self.steps, np.nan), where=predicted > 0)
        return found

    def _domain(self, place: int, domain: str, shifts: Iterable[Shift]) -> Floats:
        """Simulate a domain; its requests by step."""
        random = np.random.default_rng([self._seed, 1, place])
        when = np.arange(self.steps) * STEP / 3600
        day = 1 + 2 / 3 * np.cos(2 * np.pi * (when - QUIET - 12 + 0.5 * (place % 3 - 1)) / 24)
        week = 1 + 0.15 * np.cos(2 * np.pi * when / 168)
        requests = random.poisson(RATES[domain] * STEP * day * week)
        usual = 1 + _HOURLY * np.sin(2 * np.pi * (when + 3 * place) / 24)
        sums = np.zeros((self.steps, 3 + len(EDGES) + 1))
        for begin, end, pool in self._packs(random, place, list(shifts)):
            sums[begin:end] = _answered(random, pool, requests[begin:end], usual[begin:end])
        clicked = _late(random, sums[:, 2])
        for shift in shifts:
            if shift.kind == "lost":
                there = slice(shift.start, shift.start + shift.steps)
                clicked[there] = random.binomial(clicked[there].astype(int), 1 - shift.size)
        self._add("mdctr_requests_total", requests, domain=domain, status="200")
        self._add("mdctr_shown_total", _SHOWN * requests, domain=domain)
        self._add("mdctr_shown_probability_total", sums[:, 0], domain=domain)
        self._add("mdctr_shown_variance_total", sums[:, 1], domain=domain)
        self._add("mdctr_clicked_total", clicked, domain=domain)
        below = sums[:, 3:].cumsum(1)
        for edge, counts in zip([*map(str, EDGES), "+Inf"], below.T, strict=True):
            self._add("mdctr_scores_bucket", counts, domain=domain, le=edge)
        self._add("mdctr_scores_count", below[:, -1], domain=domain)
        return requests.astype(float)

    def _packs(
        self, random: np.random.Generator, place: int, shifts: Sequence[Shift]
    ) -> Iterable[tuple[int, int, _Pool]]:
        """From which step to which a pack serves, which shifts come and go with, and requests under it."""
        moments = sorted(random.integers(0, self.steps, 2).tolist())
        off = random.normal(0, _PACK, 3)
        wrong = [shift for shift in shifts if shift.kind in {"logits", "defaults"}]
        edges = {0, self.steps, *moments}
        edges |= {min(at, self.steps) for each in wrong for at in (each.start, each.start + each.steps)}
        ordered = sorted(edges)
        for begin, end in pairwise(ordered):
            now = [each for each in wrong if each.start <= begin < each.start + each.steps]
            own = float(off[sum(at <= begin for at in moments)])
            added = sum(each.size for each in now if each.kind == "logits")
            same = np.random.default_rng([self._seed, 2, place])
            yield (
                begin,
                end,
                _Pool.draw(same, place, own + added, defaults=any(each.kind == "defaults" for each in now)),
            )

    def _fields(self, requests: Floats, shifts: Iterable[Shift]) -> None:
        random = np.random.default_rng([self._seed, 3])
        when = np.arange(self.steps) * STEP / 3600
        for at, (field, (each, share)) in enumerate(FIELDS.items()):
            values = np.round(each * requests).astype(int)
            unknown = share * (1 + 0.3 * np.sin(2 * np.pi * (when + 5 * at) / 24))
            for shift in shifts:
                if field == "user.age":
                    unknown[shift.start : shift.start + shift.steps] = shift.size
            self._add("mdctr_values_total", values, field=field)
            if share:
                # Of a request's values as much is unknown as of a beta of few: they resemble each other.
                mixed = random.beta(
                    np.maximum(unknown, 1e-6) * 5 * requests.clip(1), (1 - unknown) * 5 * requests.clip(1)
                )
                self._add("mdctr_unknown_values_total", random.binomial(values, mixed), field=field)

    def _add(self, name: str, added: npt.NDArray[np.generic], **labels: str) -> None:
        self.added[_name(name, **labels)] = np.asarray(added, float)


def _name(metric: str, **labels: str) -> str:
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _answered(
    random: np.random.Generator, pool: _Pool, requests: npt.NDArray[np.int64], usual: Floats
) -> Floats:
    """(steps, 3 + buckets) of each step: sums of probabilities and variances, clicks, scores by bucket."""
    found = np.zeros((len(requests), 3 + pool.buckets.shape[1]))
    for first in range(0, len(requests), DAY):
        here = requests[first : first + DAY]
        step = np.repeat(np.arange(len(here)), here)
        which = random.integers(0, _POOL, len(step))
        mood = random.gamma(1 / _MOOD, _MOOD, len(step))
        clicks = random.poisson(pool.clicks[which] * mood * usual[first : first + DAY][step])
        part = found[first : first + DAY]
        for at, weights in enumerate((pool.probability[which], pool.variance[which], clicks)):
            part[:, at] = np.bincount(step, weights, len(here))
        measured = np.arange(random.integers(SAMPLED), len(step), SAMPLED)
        for bucket in range(pool.buckets.shape[1]):
            weights = pool.buckets[which[measured], bucket]
            part[:, 3 + bucket] = np.bincount(step[measured], weights, len(here))
    return found


def _late(random: np.random.Generator, clicks: Floats) -> Floats:
    """Clicks by the step in which they come."""
    seconds = _LAG * np.exp(_LAG_SPREAD * np.random.default_rng(0).standard_normal(100_000))
    seconds += np.random.default_rng(1).uniform(0, STEP, len(seconds))
    shares = np.bincount((seconds / STEP).astype(int).clip(max=20)) / len(seconds)
    left, come, of = clicks.astype(int), np.zeros(len(clicks)), 1.0
    for after, share in enumerate(shares):
        now = random.binomial(left, min(share / of, 1.0)) if of > 0 else left
        come[after:] += now[: len(now) - after]
        left, of = left - now, of - share
    return come


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))

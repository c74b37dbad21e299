"""Models on the same rows: AUC by slice, and how sure a difference is, by resampling users."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from service.contract.errors import RunError
from training.evaluation import users
from training.metrics import auc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Name = TypeVar("Name", bound=Hashable)

RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A difference of AUCs: its mean over seeds, and where 95 % of resamples lie."""

    difference: float
    low: float
    high: float
    error: float
    """Deviation over resamples."""


@dataclass(frozen=True)
class Rows:
    """n test rows that several models have scored.

    A slice is several groups, such as the domains; its AUC is the mean of theirs. A group without both
    classes is left out.
    """

    label: Ints
    user: Ints
    """(n,), below 0 where none is known: such a row is resampled by itself."""
    slices: Mapping[str, Sequence[Ints]]
    """By name: the places of each group's rows."""

    @classmethod
    def of(cls, test: pl.DataFrame, train: pl.DataFrame, domains: Sequence[str], thin: Sequence[str]) -> Rows:
        """Test rows with slices `macro`, each domain, `thin domains`, and `new items`.

        Args:
            test: rows with `domain`, `label`, `item.id`, and `user.id` where there is one.
            train: the training rows; an item that they lack is new.
            domains: names.
            thin: those with few training rows.
        """
        of_domain = {name: (test["domain"] == name).to_numpy() for name in domains}
        new = (~test["item.id"].is_in(train["item.id"].unique().implode())).to_numpy()
        slices = {
            "macro": [*of_domain.values()],
            **{name: [mine] for name, mine in of_domain.items()},
            "thin domains": [of_domain[name] for name in thin],
            "new items": [mine & new for mine in of_domain.values()],
        }
        label = test["label"].to_numpy().astype(np.int64)
        places = {
            name: [at for group in groups if len({*label[at := np.flatnonzero(group)]}) == 2]
            for name, groups in slices.items()
        }
        return cls(label, users(test), {name: groups for name, groups in places.items() if groups})

    def auc(self, logit: Floats, where: str) -> float:
        """Of a slice."""
        groups = self.slices[where]
        return float(np.mean([auc(logit[at], self.label[at]) for at in groups]))

    def resampled(self, logit: Floats, where: str, resamples: int = RESAMPLES) -> Floats:
        """AUCs (resamples,) of a slice, its users drawn with replacement; the same draws for all models."""
        draws = self._weights(resamples)
        found = np.zeros(resamples)
        for at in self.slices[where]:
            found += _weighted(logit[at], self.label[at], draws[:, self._unit[at]])
        return found / len(self.slices[where])

    def interval(self, one: Sequence[Floats], other: Sequence[Floats], where: str) -> Interval:
        """AUC of one model less that of the other, each with its seeds' logits."""
        gaps = np.mean([self.resampled(logit, where) for logit in one], 0) - np.mean(
            [self.resampled(logit, where) for logit in other], 0
        )
        gap = float(np.mean([self.auc(logit, where) for logit in one])) - float(
            np.mean([self.auc(logit, where) for logit in other])
        )
        low, high = np.nanpercentile(gaps, [2.5, 97.5])
        return Interval(gap, float(low), float(high), float(np.nanstd(gaps, ddof=1)))

    @property
    def _unit(self) -> Ints:
        unknown = self.user < 0
        unit = self.user.copy()
        unit[unknown] = np.arange(unknown.sum()) + max(int(self.user.max(initial=-1)), -1) + 1
        return unit

    def _weights(self, resamples: int) -> npt.NDArray[np.float32]:
        """(resamples, users): how often each is drawn."""
        n = int(self._unit.max(initial=-1)) + 1
        random = np.random.default_rng(_SEED)
        return np.stack(
            [np.bincount(random.integers(0, n, n), minlength=n) for _ in range(resamples)]
        ).astype(np.float32)


def _weighted(logit: Floats, label: Ints, weight: npt.NDArray[np.float32]) -> Floats:
    """AUCs of n rows under each of several weights, (resamples, n); ties count half."""
    order = np.argsort(logit, kind="stable")
    ranked, label, weight = logit[order], label[order], weight[:, order].astype(np.float64)
    clicks, others = weight * (label == 1), weight * (label == 0)
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    clicks, others = (np.add.reduceat(each, starts, axis=1) for each in (clicks, others))
    below = np.cumsum(others, axis=1) - others
    pairs = clicks.sum(1) * others.sum(1)
    with np.errstate(invalid="ignore"):
        found: Floats = (clicks * (below + others / 2)).sum(1) / pairs
    return found


def over_seeds(one: Sequence[float], other: Sequence[float]) -> float:
    """P of a two-sided t-test of two models' figures, paired by seed; not a number for less than two seeds.

    Raises:
        RunError: scipy is not installed, or the models have other numbers of seeds.
    """
    try:
        from scipy.stats import ttest_rel  # noqa: PLC0415 - only who compares models needs it
    except ImportError as error:
        raise RunError("to test differences needs scipy: pip install 'mdctr[report]'") from error
    if len(one) != len(other):
        raise RunError(f"{len(one)} and {len(other)} seeds cannot be paired")
    gaps = np.subtract(one, other)
    if len(gaps) < 2:
        return float("nan")
    if not gaps.std():  # a model beside itself
        return 1.0 if not gaps.any() else 0.0
    return float(ttest_rel(one, other).pvalue)


def holm(found: Mapping[Name, float]) -> dict[Name, float]:
    """p-values of several tests, corrected (Holm 1979): one that is true stays so with all the others."""
    out, worst = dict(found), 0.0
    ranked = sorted((name for name, p in found.items() if not np.isnan(p)), key=lambda name: found[name])
    for at, name in enumerate(ranked):
        worst = out[name] = max(worst, min(1.0, (len(ranked) - at) * found[name]))
    return out


def deviation(values: Sequence[float] | Floats) -> float:
    """Of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

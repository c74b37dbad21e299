"""What a model's logits are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.generic]
BINS = 15
"""Of the expected calibration error, as in Guo et al. (2017)."""


@dataclass(frozen=True)
class Quality:
    """Of one domain's rows. NaN where something is not defined, such as an AUC without clicks."""

    rows: int
    auc: float
    gauc: float
    logloss: float
    ne: float
    ece: float


def auc(logit: Array, label: Labels) -> float:
    """Area under the ROC curve: how often a click scores above a non-click; a tie counts half.

    Exact, from one sort. NaN where a class is missing.

    Args:
        logit: (n,), or any scores that rank alike.
        label: (n,) 0 or 1.
    """
    won, pairs, _ = _pairs(logit, label, np.zeros(len(label), np.int64))
    return float(won[0] / pairs[0]) if len(pairs) and pairs[0] else float("nan")


def gauc(logit: Array, label: Labels, group: npt.NDArray[np.integer]) -> float:
    """Grouped AUC: the mean of users' AUCs, each weighted by its rows (Zhu et al. 2017, eq. 5).

    Users without both classes have no AUC and are left out.

    Args:
        logit: (n,).
        label: (n,) 0 or 1.
        group: (n,) whose row it is; below 0 for rows of nobody known, which are left out.
    """
    known = np.asarray(group) >= 0
    won, pairs, rows = _pairs(np.asarray(logit)[known], np.asarray(label)[known], np.asarray(group)[known])
    defined = pairs > 0
    if not defined.any():
        return float("nan")
    return float(np.average(won[defined] / pairs[defined], weights=rows[defined]))


def logloss(logit: Array, label: Labels) -> float:
    """Mean binary cross-entropy in nats, from logits: log(1 + e^z) - y z. NaN if one is not finite.

    Args:
        logit: (n,).
        label: (n,) 0 or 1.
    """
    z = np.asarray(logit, np.float64)
    if not len(z) or not np.isfinite(z).all():
        return float("nan")
    return float(np.mean(np.logaddexp(0, z) - np.asarray(label, np.float64) * z))


def ne(logit: Array, label: Labels) -> float:
    """Normalised entropy: log loss over that of always saying the rows' click rate (He et al. 2014, eq. 1).

    Below 1 is better than knowing nothing but the rate. NaN where a class is missing.
    """
    rate = float(np.mean(np.asarray(label, np.float64))) if len(label) else 0.0
    if not 0 < rate < 1:
        return float("nan")
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return float(logloss(logit, label) / entropy)


def ece(logit: Array, label: Labels) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3).

    |mean probability - click rate| of each of 15 equally wide bins of probability, weighted by its rows.
    """
    if not len(logit):
        return float("nan")
    p = np.exp(-np.logaddexp(0, -np.asarray(logit, np.float64)))
    at = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(at, p - np.asarray(label, np.float64), BINS)
    return float(np.abs(gap).sum() / len(p))


def quality(logit: Array, label: Labels, group: npt.NDArray[np.integer]) -> Quality:
    """All of them at once."""
    return Quality(
        len(label),
        auc(logit, label),
        gauc(logit, label, group),
        logloss(logit, label),
        ne(logit, label),
        ece(logit, label),
    )


def _pairs(
    logit: Array, label: Labels, group: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """By group: pairs of a click and a non-click that are in order (a tie is half one), all pairs, rows.

    Scores that are not finite have no order: then there is no group.
    """
    if not len(label) or not np.isfinite(logit).all():
        empty = np.zeros(0, np.int64)
        return empty.astype(np.float64), empty, empty
    order = np.lexsort((logit, group))
    score, owner = np.asarray(logit)[order], np.asarray(group)[order]
    clicked = np.asarray(label)[order].astype(np.int64)
    tie = np.flatnonzero(np.r_[True, (score[1:] != score[:-1]) | (owner[1:] != owner[:-1])])
    clicks = np.add.reduceat(clicked, tie)
    misses = np.diff(np.r_[tie, len(score)]) - clicks
    first = np.flatnonzero(np.r_[True, owner[tie][1:] != owner[tie][:-1]])  # of each group, among the ties
    before = np.cumsum(misses) - misses
    below = before - np.repeat(before[first], np.diff(np.r_[first, len(tie)]))
    won = np.add.reduceat(clicks * (below + misses / 2), first)
    all_clicks, all_misses = np.add.reduceat(clicks, first), np.add.reduceat(misses, first)
    return won, all_clicks * all_misses, all_clicks + all_misses

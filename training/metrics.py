"""What a model's logits are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Quality:
    """Of one domain's rows."""

    rows: int
    auc: float
    logloss: float


def auc(logit: npt.NDArray[np.floating], label: npt.NDArray[np.generic]) -> float:
    """Area under the ROC curve: how often a click scores above a non-click; a tie counts half.

    Exact, from one sort. NaN where a class is missing.

    Args:
        logit: (n,), or any scores that rank alike.
        label: (n,) 0 or 1.
    """
    positive = np.asarray(label) > 0
    pairs = int(positive.sum()) * int((~positive).sum())
    if not pairs:
        return float("nan")
    order = np.argsort(logit, kind="stable")
    ranked, clicked = np.asarray(logit)[order], positive[order]
    start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of every group of equal scores
    clicks = np.add.reduceat(clicked.astype(np.int64), start)
    misses = np.diff(np.r_[start, len(ranked)]) - clicks
    below = np.cumsum(misses) - misses
    return float((clicks * (below + misses / 2)).sum() / pairs)


def logloss(logit: npt.NDArray[np.floating], label: npt.NDArray[np.generic]) -> float:
    """Mean binary cross-entropy in nats, from logits: log(1 + e^z) - y z.

    Args:
        logit: (n,).
        label: (n,) 0 or 1.
    """
    z = np.asarray(logit, np.float64)
    return float(np.mean(np.logaddexp(0, z) - np.asarray(label, np.float64) * z))


def quality(logit: npt.NDArray[np.floating], label: npt.NDArray[np.generic]) -> Quality:
    """All of them at once."""
    return Quality(len(label), auc(logit, label), logloss(logit, label))

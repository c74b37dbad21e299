"""Two packs on the same logged traffic: what a comparison can say before anybody is shown anything.

What was clicked is known only of what the pack that answered chose to show, and where it stood. So a new pack
that would show other items is judged on the old one's choice: this finds packs that are broken or badly
calibrated, and orders those that are far apart. Whether users click more, an experiment says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from service.experiments import statistics as of

Floats = npt.NDArray[np.float64]
TOP = 10
"""Items that count as the top of an answer."""
_LEAST = 50
"""Clicks, and answers without one, below which nothing is said."""
_SMALLEST = 1e-12
"""A probability is taken to be at least so far from 0 and 1, or one answer would decide a log loss."""


@dataclass(frozen=True)
class Traffic:
    """Q requests of one domain, of B impressions in all, under two packs."""

    unit: npt.NDArray[np.int64]
    """(Q,)"""
    size: npt.NDArray[np.int64]
    """(Q,) impressions."""
    clicked: npt.NDArray[np.bool_]
    """(B,)"""
    old: Floats
    """(B,) probabilities."""
    new: Floats
    """(B,)"""


def compare(domains: Mapping[str, Traffic], alpha: float = 0.05) -> dict[str, Any]:
    """Everything there is to say, as JSON.

    Args:
        domains: what was logged of each.
        alpha: the chance that a difference of log losses is shown that there is not; domains share it.
    """
    found = {name: _domain(traffic, alpha / len(domains)) for name, traffic in domains.items()}
    return {"domains": found, "verdict": [said for name, each in found.items() for said in _said(name, each)]}


def auc(clicked: npt.NDArray[np.bool_], score: Floats) -> float | None:
    """The chance that a clicked impression scores above one that was not; ties count half."""
    positive = int(clicked.sum())
    negative = len(clicked) - positive
    if not positive or not negative:
        return None
    ranks = stats.rankdata(score)
    return float((ranks[clicked].sum() - positive * (positive + 1) / 2) / (positive * negative))


def log_losses(clicked: npt.NDArray[np.bool_], score: Floats) -> Floats:
    """(B,) of each impression, in nats."""
    inside = np.clip(score, _SMALLEST, 1 - _SMALLEST)
    return -np.log(np.where(clicked, inside, 1 - inside))


def overlap(old: Floats, new: Floats, sizes: npt.NDArray[np.int64]) -> tuple[float, float] | None:
    """How alike two packs rank, over requests of two items or more.

    Returns:
        The mean share of the top items, `TOP` or half of them, that are in both, and the mean of Kendall's
        τ-b; None where there is no such request.
    """
    tops, taus = [], []
    for one, other in _requests(old, new, sizes):
        if len(one) < 2:
            continue
        count = min(TOP, len(one) // 2)
        first, second = (set(np.argsort(-each, kind="stable")[:count].tolist()) for each in (one, other))
        tops.append(len(first & second) / count)
        tau = stats.kendalltau(one, other).statistic if np.ptp(one) and np.ptp(other) else np.nan
        taus.append(tau)
    if not tops:
        return None
    known = [tau for tau in taus if np.isfinite(tau)]
    return float(np.mean(tops)), float(np.mean(known)) if known else 0.0


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a table, after its verdict."""
    cells = [
        [
            "domain",
            "impressions",
            "clicks",
            "AUC",
            "log loss",
            "predicted / observed",
            "top in both",
            "shift",
        ],
        ["---"] * 8,
    ]
    for name, each in found["domains"].items():
        pairs = [
            f"{_text(each['old'][key])} → {_text(each['new'][key])}"
            for key in ("auc", "log_loss", "calibration")
        ]
        top = "" if each["overlap"] is None else f"{100 * each['overlap']['top']:.0f} %"
        shift = each["shift"]
        moved = f"{shift['mean']:+.3f} ± {shift['deviation']:.3f}"
        cells.append([name, f"{each['impressions']:,}", f"{each['clicks']:,}", *pairs, top, moved])
    verdict = "".join(f"- {each}\n" for each in found["verdict"])
    return f"{verdict}\n" + "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _domain(traffic: Traffic, alpha: float) -> dict[str, Any]:
    clicked, clicks = traffic.clicked, int(traffic.clicked.sum())
    scores = {"old": traffic.old, "new": traffic.new}
    losses = {name: log_losses(clicked, score) for name, score in scores.items()}
    whole: dict[str, Any] = {
        "requests": len(traffic.size),
        "impressions": len(clicked),
        "clicks": clicks,
        **{
            name: {
                "auc": auc(clicked, score),
                "log_loss": float(losses[name].mean()),
                "calibration": float(score.sum() / clicks) if clicks else None,
            }
            for name, score in scores.items()
        },
        "overlap": None,
        "difference": None,
    }
    old, new = (
        np.log(each) - np.log1p(-each)
        for each in (np.clip(score, _SMALLEST, 1 - _SMALLEST) for score in scores.values())
    )
    whole["shift"] = {"mean": float((new - old).mean()), "deviation": float((new - old).std())}
    alike = overlap(traffic.old, traffic.new, traffic.size)
    if alike is not None:
        whole["overlap"] = {"top": alike[0], "kendall": alike[1]}
    if min(clicks, len(clicked) - clicks) >= _LEAST:
        whole["difference"] = _difference(traffic, losses["new"] - losses["old"], alpha)
    return whole


def _difference(traffic: Traffic, losses: Floats, alpha: float) -> dict[str, float]:
    """The mean difference of log losses, its interval with the variance of units."""
    of_unit = np.repeat(traffic.unit, traffic.size)
    _, unit = np.unique(of_unit, return_inverse=True)
    found = of.ratio(np.bincount(unit, losses), np.bincount(unit).astype(np.float64))
    low, high = found.interval(of.fixed(alpha))
    return {"value": float(found.value), "low": float(low), "high": float(high)}


def _said(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    difference = found["difference"]
    if difference is None:
        yield f"{name}: {found['clicks']:,} clicks are too few to say anything."
        return
    span = (
        f"log loss {difference['value']:+.5f}, between {difference['low']:+.5f} and {difference['high']:+.5f}"
    )
    if difference["high"] < 0:
        yield f"{name}: the new pack predicts better ({span}). Try it on users."
    elif difference["low"] > 0:
        yield f"{name}: the new pack predicts worse ({span}). Find out why before any user sees it."
    else:
        yield f"{name}: no difference is shown ({span})."
    calibration = found["new"]["calibration"]
    if abs(calibration - 1) > 0.1:
        yield f"{name}: the new pack predicts {calibration:.2f} times the clicks that there were."
    if found["overlap"] is not None and found["overlap"]["top"] < 0.5:
        yield f"{name}: it would show other items: {found['overlap']['top']:.0%} of the top are in both."


def _requests(
    old: Floats, new: Floats, sizes: Sequence[int] | npt.NDArray[np.int64]
) -> Iterator[tuple[Floats, Floats]]:
    ends = np.cumsum(sizes)[:-1]
    yield from zip(np.split(old, ends), np.split(new, ends), strict=True)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

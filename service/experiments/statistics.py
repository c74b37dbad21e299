"""What is known of a difference between two arms: pure functions of numbers by unit.

A unit is what was randomised, so units are independent and their clicks are not. Whatever takes values by
unit has them on the last axis; the axes before it are replications, such as days or simulated experiments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A number, or an array of them, with its standard error."""

    value: Any
    se: Any

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of independent estimates."""
        return Estimate(self.value - other.value, np.hypot(self.se, other.se))

    def interval(self, reach: Any) -> tuple[Any, Any]:  # noqa: ANN401 - a number or an array
        """Value ± reach · se."""
        return self.value - reach * self.se, self.value + reach * self.se


def mean(values: Numbers) -> Estimate:
    """The mean over units; NaN as error where there are fewer than two."""
    units = values.shape[-1]
    if units < 2:
        found = values.mean(-1) if units else np.full(values.shape[:-1], np.nan)
        return Estimate(found, np.full(values.shape[:-1], np.nan))
    return Estimate(values.mean(-1), values.std(-1, ddof=1) / np.sqrt(units))


def linearised(clicks: Numbers, impressions: Numbers) -> Floats:
    """Values by unit, R + (clicks - R · impressions) / n̄, whose mean is R = Σ clicks / Σ impressions.

    The variance of their mean is the delta method's (Deng, Knoblich and Lu 2018, section 3):
    (s²_c - 2 R s_cn + R² s²_n) / (units · n̄²), n̄ the mean of impressions. That of single impressions would be
    too small, since a unit's clicks are alike.
    """
    per_unit = impressions.mean(-1, keepdims=True)
    rate = clicks.mean(-1, keepdims=True) / per_unit
    found: Floats = rate + (clicks - rate * impressions) / per_unit
    return found


def ratio(clicks: Numbers, impressions: Numbers) -> Estimate:
    """Clicks per impression, with the variance of units."""
    return mean(linearised(clicks, impressions))


def lift(treatment: Estimate, control: Estimate) -> Estimate:
    """The relative difference, by the delta method (Deng, Knoblich and Lu 2018, section 2)."""
    quotient = treatment.value / control.value
    return Estimate(quotient - 1, np.hypot(treatment.se, quotient * control.se) / np.abs(control.value))


def sample_ratio(units: Sequence[int], weights: Sequence[float]) -> float:
    """Pearson's chi-square test that units came to the arms as declared (Fabijan et al. 2019): p."""
    expected = np.asarray(weights, np.float64) / np.sum(weights) * np.sum(units)
    return float(stats.chisquare(units, expected).pvalue)


def fixed(alpha: float) -> float:
    """How many standard errors an interval reaches that is looked at once, on a day fixed before."""
    return float(stats.norm.ppf(1 - alpha / 2))


def always_valid(se: Any, mixture: float, alpha: float) -> Any:  # noqa: ANN401 - a number or an array
    """How many standard errors an interval reaches that may be looked at on any day.

    The Gaussian-mixture asymptotic confidence sequence (Waudby-Smith et al. 2024, theorem 2.2), whose radius
    after t observations is σ √(2 (tρ² + 1) / (t²ρ²) · log(√(tρ² + 1) / α)). With se = σ / √t and
    x = tρ² = mixture² / se² that is se · √((1 + 1/x) log((1 + x) / α²)): it depends on t through se alone.
    Units come back on other days, so the clock is information, 1 / se², and not a number of units. The same
    follows from inverting the mixture SPRT under a normal prior of that deviation (Johari et al. 2022).

    Args:
        se: standard error of the difference.
        mixture: deviation of the effects mixed over, in the difference's unit; see `mixture`.
        alpha: the chance that any interval of the sequence misses.
    """
    x = (mixture / np.maximum(se, mixture * 1e-6)) ** 2
    return np.sqrt((1 + 1 / x) * (np.log1p(x) - 2 * np.log(alpha)))


def mixture(se: float, alpha: float) -> float:
    """The deviation with which the always-valid interval is narrowest where the standard error is `se`.

    x = mixture² / se² solves log((1 + x) / α²) = x, so x = -W₋₁(-α² / e) - 1 (Waudby-Smith et al. 2024,
    on the choice of ρ).
    """
    x = -special.lambertw(-(alpha**2) / np.e, -1).real - 1
    return float(se * np.sqrt(x))


def p_fixed(difference: Estimate) -> Any:  # noqa: ANN401
    """Two-sided p of no difference, on a day fixed before."""
    return 2 * stats.norm.sf(np.abs(difference.value) / difference.se)


def p_always_valid(difference: Estimate, mixture: float) -> Any:  # noqa: ANN401
    """One over the mixture likelihood ratio, at most 1: p on any day (Johari et al. 2022)."""
    x = (mixture / difference.se) ** 2
    log_ratio = (difference.value / difference.se) ** 2 * x / (1 + x) / 2 - np.log1p(x) / 2
    return np.exp(-np.maximum(log_ratio, 0))


def planned_se(effect: float, alpha: float, power: float) -> float:
    """The standard error at which one look finds an effect with this power: effect / (z₁₋α/₂ + z_power)."""
    return float(effect / (fixed(alpha) + stats.norm.ppf(power)))


def units_needed(deviation: float, se: float) -> int:
    """Units of each of two arms for a difference's standard error: 2 σ² / se², σ the deviation by unit.

    With `planned_se` that is the usual n = 2 σ² (z₁₋α/₂ + z_power)² / effect².
    """
    return int(np.ceil(2 * (deviation / se) ** 2))


def power(effect: float, se: float, reach: float) -> float:
    """The chance that an interval of `reach` standard errors excludes 0."""
    shift = effect / se
    return float(stats.norm.sf(reach - shift) + stats.norm.cdf(-reach - shift))


def cuped(arms: Sequence[Numbers], before: Sequence[Numbers]) -> tuple[list[Floats], float]:
    """Values by unit less what their past explains (Deng et al. 2013, section 3.2), and the correlation.

    Y - θ (X - X̄), with θ = cov(Y, X) / var(X) within arms, the same for all, and X̄ over all units. The
    expectation is that of Y, as chance drew the arms, and the variance (1 - correlation²) times its.

    Args:
        arms: of each arm, (units,) values now.
        before: of each arm, (units,) values of a time before the experiment; NaN where there is none.
    """
    known = np.concatenate(before)
    centre = float(np.nanmean(known)) if np.isfinite(known).any() else 0.0
    past = [np.where(np.isnan(values), centre, values) - centre for values in before]
    y, x = (np.concatenate([values - values.mean() for values in side]) for side in (arms, past))
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    if not xx or not yy:
        return [np.asarray(values, np.float64) for values in arms], 0.0
    return [values - xy / xx * shift for values, shift in zip(arms, past, strict=True)], xy / np.sqrt(xx * yy)


@dataclass(frozen=True)
class Heterogeneity:
    """Whether effects differ by more than chance."""

    q: float
    df: int
    p: float
    i2: float
    """Share of the variation between effects that is not chance, in [0, 1)."""


def heterogeneity(effects: Numbers, se: Numbers) -> Heterogeneity:
    """Cochran's Q = Σ (effect - mean)² / se², its mean weighted by 1 / se² (Cochran 1954), and I².

    I² = (Q - df) / Q (Higgins and Thompson 2002). Effects are taken to be independent.

    Args:
        effects: (D,).
        se: (D,), above 0.
    """
    weight = 1 / np.asarray(se, np.float64) ** 2
    df = len(weight) - 1
    if df < 1:
        return Heterogeneity(0.0, 0, 1.0, 0.0)
    q = float((weight * (effects - np.average(effects, weights=weight)) ** 2).sum())
    return Heterogeneity(q, df, float(stats.chi2.sf(q, df)), max(0.0, (q - df) / q) if q else 0.0)


@dataclass(frozen=True)
class Calibration:
    """Mean probability beside click rate, in all and in bins of equally many impressions."""

    predicted: float
    observed: float
    ece: float
    """Σ over bins of share · |predicted - observed|."""
    bins: list[dict[str, float]]


def calibration(probability: Numbers, clicked: Numbers, bins: int = 15) -> Calibration:
    """Expected calibration error (Guo et al. 2017, eq. 3), over bins of equally many rows.

    Click rates are small: of equally wide bins one would have them all.

    Args:
        probability: (n,), n at least 1.
        clicked: (n,) 0 or 1.
        bins: how many.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    found = [
        {
            "rows": float(len(part)),
            "predicted": float(probability[part].mean(dtype=np.float64)),
            "observed": float(clicked[part].mean(dtype=np.float64)),
        }
        for part in parts
    ]
    gap = sum(each["rows"] * abs(each["predicted"] - each["observed"]) for each in found)
    return Calibration(
        float(probability.mean(dtype=np.float64)),
        float(clicked.mean(dtype=np.float64)),
        gap / len(order),
        found,
    )

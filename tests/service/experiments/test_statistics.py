"""Statistics against scipy, bootstraps, hand calculations and simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from service.experiments import statistics as of
from service.experiments.statistics import Estimate


@pytest.fixture
def random():
    return np.random.default_rng(7)


def unlike(random, units):
    """Clicks and impressions of users who differ."""
    impressions = random.poisson(np.exp(random.normal(1, 0.8, units))) + 1
    return random.binomial(impressions, random.beta(2, 18, units)), impressions


def test_a_ratios_error_is_the_bootstraps_over_units(random):
    clicks, impressions = unlike(random, 2000)
    found = of.ratio(clicks, impressions)
    assert found.value == pytest.approx(clicks.sum() / impressions.sum())
    draws = random.integers(0, 2000, (3000, 2000))
    assert found.se == pytest.approx((clicks[draws].sum(1) / impressions[draws].sum(1)).std(), rel=0.05)
    rate = found.value
    assert found.se > 1.1 * np.sqrt(rate * (1 - rate) / impressions.sum())


def test_a_ratios_error_is_the_formula(random):
    """Deng, Knoblich and Lu (2018), written out with moments."""
    clicks, impressions = unlike(random, 500)
    (cc, cn), (_, nn) = np.cov(clicks, impressions)
    rate, per_unit = clicks.sum() / impressions.sum(), impressions.mean()
    variance = (cc - 2 * rate * cn + rate**2 * nn) / (500 * per_unit**2)
    assert of.ratio(clicks, impressions).se == pytest.approx(np.sqrt(variance))


def test_replications_stand_on_the_axes_before(random):
    clicks, impressions = (
        np.stack(each) for each in zip(*(unlike(random, 50) for _ in range(3)), strict=True)
    )
    found = of.ratio(clicks, impressions)
    for at in range(3):
        alone = of.ratio(clicks[at], impressions[at])
        assert (found.value[at], found.se[at]) == pytest.approx((alone.value, alone.se))


def test_a_mean_of_one_unit_has_no_error():
    found = of.mean(np.array([3.0]))
    assert found.value == 3
    assert np.isnan(found.se)
    assert np.isnan(of.mean(np.array([])).value)


def test_a_difference_of_means_is_welchs(random):
    one, other = random.normal(1, 2, 300), random.normal(0, 1, 200)
    difference = of.mean(one) - of.mean(other)
    assert difference.value / difference.se == pytest.approx(
        stats.ttest_ind(one, other, equal_var=False).statistic
    )
    assert of.p_fixed(Estimate(1.96, 1.0)) == pytest.approx(0.05, abs=1e-4)
    assert of.fixed(0.05) == pytest.approx(1.959964)


def test_a_lifts_error_is_that_of_many_draws(random):
    control, treatment = Estimate(0.1, 0.002), Estimate(0.11, 0.003)
    found = of.lift(treatment, control)
    assert found.value == pytest.approx(0.1)
    draws = random.normal(0.11, 0.003, 10**6) / random.normal(0.1, 0.002, 10**6)
    assert found.se == pytest.approx(draws.std(), rel=0.01)


def test_sample_ratio():
    """Hand: (49,000 - 50,000)² / 50,000 · 2 = 40, and scipy's chi-square beyond it on one degree."""
    assert of.sample_ratio([49_000, 51_000], [1, 1]) == pytest.approx(stats.chi2.sf(40, 1))
    assert of.sample_ratio([1000, 3000], [0.1, 0.3]) == pytest.approx(1)
    assert of.sample_ratio([10, 10, 40], [1, 1, 1]) == pytest.approx(stats.chi2.sf(30, 2))


def test_the_mixtures_radius_is_the_papers():
    """Waudby-Smith et al. (2024), theorem 2.2, in its own letters."""
    sigma, t, rho, alpha = 1.7, 5000.0, 0.03, 0.05
    radius = sigma * np.sqrt(2 * (t * rho**2 + 1) / (t**2 * rho**2) * np.log(np.sqrt(t * rho**2 + 1) / alpha))
    assert sigma / np.sqrt(t) * of.always_valid(sigma / np.sqrt(t), sigma * rho, alpha) == pytest.approx(
        radius
    )


def test_the_mixture_is_the_one_that_is_narrowest_there():
    def reach(log, alpha):
        return float(of.always_valid(0.01, np.exp(log), alpha))

    for alpha in (0.2, 0.05, 0.001):
        best = optimize.minimize_scalar(reach, bounds=(-10, 0), args=(alpha,), method="bounded")
        assert of.mixture(0.01, alpha) == pytest.approx(np.exp(best.x), rel=1e-3)


def test_p_is_one_over_the_mixture_likelihood_ratio():
    """The integral over effects, done by scipy."""
    difference, mixture = Estimate(0.31, 0.1), 0.2
    ratio, _ = integrate.quad(
        lambda effect: (
            stats.norm.pdf(effect, 0, mixture)
            * stats.norm.pdf(0.31, effect, 0.1)
            / stats.norm.pdf(0.31, 0, 0.1)
        ),
        -2,
        2,
    )
    assert of.p_always_valid(difference, mixture) == pytest.approx(1 / ratio)
    # p reaches alpha where the interval reaches 0.
    reach = of.always_valid(0.1, mixture, 0.05)
    assert of.p_always_valid(Estimate(0.1 * reach, 0.1), mixture) == pytest.approx(0.05)
    assert of.p_always_valid(Estimate(0.0, 0.1), mixture) == 1


def test_the_confidence_sequence_narrows_and_covers_all_the_time(random):
    """1,000 walks of 2,000 steps with exponential noise: all their intervals hold the mean in 95 of 100."""
    runs, steps, truth = 1000, 2000, 1.0
    at = np.arange(1, steps + 1)
    values = random.exponential(truth, (runs, steps))
    means = values.cumsum(1) / at
    deviation = np.sqrt(np.maximum((values**2).cumsum(1) / at - means**2, 1e-12))
    found = Estimate(means[:, 99:], (deviation / np.sqrt(at))[:, 99:])
    mixture = of.mixture(truth / np.sqrt(1000), 0.05)
    low, high = found.interval(of.always_valid(found.se, mixture, 0.05))
    assert ((low <= truth) & (truth <= high)).all(1).mean() >= 0.95
    once, _ = found.interval(of.fixed(0.05))
    assert (once > truth).any(1).mean() > 0.1  # looked at all the time, the other one misses
    errors = 1 / np.sqrt(np.arange(100, 10**6, 100))
    assert (np.diff(errors * of.always_valid(errors, mixture, 0.05)) < 0).all()


@pytest.mark.parametrize("stay", [1e9, 4])
def test_it_holds_for_units_that_arrive_and_come_back(random, stay):
    """Users of very different rates arrive over 40 days and stay; looked at on each of 36, few are misled."""
    runs, units, days, missed = 300, 1000, 40, 0
    day = np.arange(days)[:, None]
    for _ in range(runs):
        rate = 1 / (1 + np.exp(2 - random.normal(0, 1, units)))
        came = random.integers(0, days, units)
        seen = (
            2
            * random.lognormal(0, 0.8, units)
            * ((day >= came) & (day < came + random.geometric(1 / stay, units)))
        )
        clicks, misses = (random.poisson(seen * part).cumsum(0)[4:] for part in (rate, 1 - rate))
        treated = random.random(units) < 0.5
        one, other = (of.ratio(clicks[:, arm], (clicks + misses)[:, arm]) for arm in (treated, ~treated))
        difference = one - other
        mixture = of.mixture(float(difference.se[-1]), 0.05)
        low, high = difference.interval(of.always_valid(difference.se, mixture, 0.05))
        missed += int(((low > 0) | (high < 0)).any())
    assert missed / runs <= 0.05


def test_the_design_finds_what_it_was_made_to_find(random):
    """n = 2 σ² (1.96 + 0.84)² / effect², as textbooks have it, and power by simulation."""
    se = of.planned_se(0.1, 0.05, 0.8)
    assert of.units_needed(1.0, se) == pytest.approx(2 * (1.959964 + 0.841621) ** 2 / 0.01, abs=1)
    assert of.power(0.1, se, of.fixed(0.05)) == pytest.approx(0.8, abs=1e-3)
    estimates = random.normal(0.1, se, 20_000)
    assert np.mean(np.abs(estimates) > of.fixed(0.05) * se) == pytest.approx(0.8, abs=0.01)
    assert of.power(0.0, 1.0, of.fixed(0.05)) == pytest.approx(0.05)


def test_cuped_is_the_regression_on_the_past(random):
    """Slope by numpy's least squares, a mean for each arm; variance smaller by the correlation's square."""
    past = [random.gamma(2, 1, units) for units in (4000, 3000)]
    arms = [
        0.8 * before + random.normal(shift, 1, len(before))
        for before, shift in zip(past, (0.1, 0), strict=True)
    ]
    adjusted, correlation = of.cuped(arms, past)
    y, x = np.concatenate(arms), np.concatenate(past)
    first = np.repeat([1.0, 0.0], [4000, 3000])
    slope = np.linalg.lstsq(np.stack([x, first, 1 - first], 1), y)[0][0]
    difference = of.mean(adjusted[0]) - of.mean(adjusted[1])
    plain = of.mean(arms[0]) - of.mean(arms[1])
    assert difference.value == pytest.approx(plain.value - slope * (past[0].mean() - past[1].mean()))
    assert difference.se == pytest.approx(plain.se * np.sqrt(1 - correlation**2), rel=0.02)
    assert difference.se < 0.8 * plain.se


def test_cuped_takes_units_without_a_past_and_a_past_without_news(random):
    arms = [random.normal(size=100), random.normal(size=100)]
    past = [np.full(100, np.nan), np.full(100, np.nan)]
    adjusted, correlation = of.cuped(arms, past)
    assert correlation == 0
    assert adjusted[0] == pytest.approx(arms[0])
    known = [np.where(np.arange(100) < 50, arm, np.nan) for arm in arms]
    adjusted, correlation = of.cuped(arms, known)
    assert 0.5 < correlation < 1
    assert np.isfinite(np.concatenate(adjusted)).all()


def test_heterogeneity():
    """Hand: weights 100, 100 and 25 of 0.1, 0.3 and 0.2 have the mean 0.2, so Q = 1 + 1 + 0 on 2 degrees."""
    found = of.heterogeneity(np.array([0.1, 0.3, 0.2]), np.array([0.1, 0.1, 0.2]))
    assert (found.q, found.df, found.i2) == pytest.approx((2, 2, 0))
    assert found.p == pytest.approx(np.exp(-1))
    far = of.heterogeneity(np.array([0.0, 1.0]), np.array([0.1, 0.1]))
    assert (far.q, far.i2) == pytest.approx((50, 0.98))
    assert of.heterogeneity(np.array([0.1]), np.array([0.1])).p == 1


def test_heterogeneity_is_chi_square_without_any(random):
    se = random.uniform(0.5, 2, 10)
    p = [of.heterogeneity(random.normal(0, se), se).p for _ in range(2000)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_calibration():
    """Hand: bins of two rows, |0.15 - 0.5| and |0.35 - 0| a half each."""
    found = of.calibration(np.array([0.4, 0.1, 0.3, 0.2]), np.array([0, 1, 0, 0]), bins=2)
    assert (found.predicted, found.observed) == pytest.approx((0.25, 0.25))
    assert found.ece == pytest.approx((0.35 + 0.35) / 2)
    assert [each["rows"] for each in found.bins] == [2, 2]
    assert len(of.calibration(np.array([0.5]), np.array([1])).bins) == 1

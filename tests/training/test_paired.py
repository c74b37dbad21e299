"""Resampled AUCs against scikit-learn's weighted AUC, and what slices hold."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from service.contract.errors import RunError
from training import paired
from training.paired import holm, over_seeds


def rows(n: int = 400, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    random = np.random.default_rng(seed)
    test = pl.DataFrame(
        {
            "domain": random.choice(["a", "b", "c"], n),
            "label": random.integers(0, 2, n),
            "item.id": random.integers(0, 20, n),
            "user.id": random.integers(0, 30, n),
        }
    )
    return test, pl.DataFrame({"item.id": np.arange(15)})


@pytest.fixture
def both() -> tuple[pl.DataFrame, paired.Rows]:
    test, train = rows()
    return test, paired.Rows.of(test, train, ["a", "b", "c"], ["b", "c"])


def test_a_slices_auc_is_the_mean_of_its_groups(both):
    """Expected: scikit-learn, domain by domain."""
    test, found = both
    logit = np.round(np.random.default_rng(1).normal(size=test.height), 1)  # with ties
    label = test["label"].to_numpy()

    def expected(domains: str, extra: np.ndarray | bool = True) -> float:
        masks = [(test["domain"] == domain).to_numpy() & extra for domain in domains]
        return float(np.mean([roc_auc_score(label[mask], logit[mask]) for mask in masks]))

    new = (test["item.id"] >= 15).to_numpy()
    assert found.auc(logit, "macro") == pytest.approx(expected("abc"))
    assert found.auc(logit, "thin domains") == pytest.approx(expected("bc"))
    assert found.auc(logit, "a") == pytest.approx(expected("a"))
    assert found.auc(logit, "new items") == pytest.approx(expected("abc", new))


def test_a_resample_is_an_auc_weighted_by_how_often_a_user_was_drawn(both):
    """Expected: scikit-learn with those weights."""
    test, found = both
    logit = np.round(np.random.default_rng(2).normal(size=test.height), 1)
    draws = found.resampled(logit, "a", resamples=5)
    random = np.random.default_rng(0)
    users = int(test["user.id"].n_unique())
    mine = (test["domain"] == "a").to_numpy()
    rank = test["user.id"].rank("dense").to_numpy() - 1
    for draw in draws:
        weight = np.bincount(random.integers(0, users, users), minlength=users)[rank]
        label = test["label"].to_numpy()
        expected = roc_auc_score(label[mine], logit[mine], sample_weight=weight[mine])
        assert draw == pytest.approx(expected)


def test_a_model_does_not_differ_from_itself(both):
    test, found = both
    logit = np.random.default_rng(3).normal(size=test.height)
    gap = found.interval([logit], [logit], "macro")
    assert (gap.difference, gap.low, gap.high, gap.error) == (0, 0, 0, 0)


def test_the_truth_is_surely_better_than_noise(both):
    test, found = both
    random = np.random.default_rng(4)
    noise = random.normal(size=test.height)
    truth = test["label"].to_numpy() + noise
    gap = found.interval([truth, truth], [noise], "macro")
    assert 0 < gap.low < gap.difference < gap.high
    assert gap.error > 0


def test_rows_of_nobody_known_are_drawn_by_themselves():
    test, train = rows()
    found = paired.Rows.of(test.drop("user.id"), train, ["a", "b", "c"], [])
    assert "thin domains" not in found.slices
    logit = np.random.default_rng(5).normal(size=test.height)
    assert np.unique(found.resampled(logit, "macro", resamples=4)).size == 4


def test_seeds_are_paired() -> None:
    # By hand: gaps .01, .02, .03 have mean .02 and deviation .01, so t = 2 sqrt(3). Of two degrees of
    # freedom the distribution has a closed form: p = 1 - t / sqrt(2 + t^2).
    t = 2 * 3**0.5
    p = over_seeds([0.71, 0.62, 0.83], [0.70, 0.60, 0.80])
    assert p == pytest.approx(1 - t / (2 + t * t) ** 0.5)
    assert over_seeds([0.7, 0.6], [0.7, 0.6]) == 1
    assert math.isnan(over_seeds([0.7], [0.6]))
    with pytest.raises(RunError, match="2 and 3 seeds"):
        over_seeds([0.7, 0.6], [0.7, 0.6, 0.5])


def test_p_values_are_corrected_for_their_number() -> None:
    # By hand: 3 * .01; 2 * .03; and 1 * .04, which may not be below the one before it.
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "none": math.nan})
    assert found["b"] == pytest.approx(0.03)
    assert found["c"] == found["a"] == pytest.approx(0.06)
    assert math.isnan(found["none"])

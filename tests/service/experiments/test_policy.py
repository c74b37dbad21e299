"""Two packs on the same traffic: measures against scikit-learn and by hand, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from service.experiments.policy import Traffic, auc, compare, log_losses, markdown, overlap


def traffic(better: float = 0.0, requests: int = 400, seed: int = 0) -> Traffic:
    """Ten items a request; the old pack's logits are off by noise, the new one's by less (or by more)."""
    random = np.random.default_rng(seed)
    logit = random.normal(-1.5, 1.0, requests * 10)
    clicked = random.random(len(logit)) < 1 / (1 + np.exp(-logit))
    old, new = (1 / (1 + np.exp(-(logit + random.normal(0, off, len(logit))))) for off in (1, 1 - better))
    sizes = np.full(requests, 10)
    return Traffic(np.arange(requests) // 2, sizes, clicked, old, new)


def test_measures_are_those_of_scikit_learn() -> None:
    found = traffic()
    rounded = np.round(found.old, 1)  # with ties
    assert auc(found.clicked, rounded) == pytest.approx(metrics.roc_auc_score(found.clicked, rounded))
    assert log_losses(found.clicked, found.old).mean() == pytest.approx(
        metrics.log_loss(found.clicked, found.old)
    )
    assert auc(np.zeros(3, bool), np.arange(3.0)) is None
    assert np.isfinite(log_losses(np.array([True]), np.array([0.0]))).all()


def test_ranks_that_overlap_by_hand() -> None:
    """Of four items the top two: {0, 1} and {0, 2}, one of two; the pairs of ranks 0123 and 0213: one of six
    is turned, so tau is 4 / 6. The second request has one item, the third is the same in both: 1 and 1."""
    old = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    new = np.array([0.9, 0.7, 0.8, 0.6, 0.1, 0.4, 0.3])
    found = overlap(old, new, np.array([4, 1, 2]))
    assert found == pytest.approx(((0.5 + 1) / 2, (4 / 6 + 1) / 2))
    assert overlap(old[:1], new[:1], np.array([1])) is None


@pytest.mark.parametrize(
    ("better", "said"), [(0.8, "predicts better"), (-0.8, "predicts worse"), (0.0, "no difference is shown")]
)
def test_a_plain_verdict(better, said) -> None:
    found = compare({"books": traffic(better)})
    assert said in found["verdict"][0]
    books = found["domains"]["books"]
    assert books["difference"]["value"] == pytest.approx(books["new"]["log_loss"] - books["old"]["log_loss"])
    assert books["shift"]["mean"] == pytest.approx(0, abs=0.1)
    text = markdown(found)
    assert text.startswith(f"- {found['verdict'][0]}")
    assert f"| books | 4,000 | {books['clicks']:,} |" in text


def test_units_and_not_impressions_are_independent() -> None:
    """Each request fifty times over is as many impressions of the same users."""
    one = traffic(0.1)
    many = Traffic(
        np.tile(one.unit, 50),
        np.tile(one.size, 50),
        np.tile(one.clicked, 50),
        np.tile(one.old, 50),
        np.tile(one.new, 50),
    )
    few, more = (compare({"books": each})["domains"]["books"]["difference"] for each in (one, many))
    assert few == pytest.approx(more)


def test_a_shifted_pack_and_one_that_ranks_otherwise_are_said() -> None:
    one = traffic()
    high = compare(
        {"books": Traffic(one.unit, one.size, one.clicked, one.old, np.minimum(2 * one.old, 0.99))}
    )
    assert any("times the clicks that there were" in each for each in high["verdict"])
    turned = compare({"books": Traffic(one.unit, one.size, one.clicked, one.old, 1 - one.old)})
    assert any("it would show other items: " in each for each in turned["verdict"])


def test_too_few_clicks_and_none_at_all() -> None:
    one = traffic(requests=10)
    found = compare({"books": Traffic(one.unit, one.size, 0 * one.clicked > 0, one.old, one.new)})
    assert found["verdict"] == ["books: 0 clicks are too few to say anything."]
    assert "| books | 100 | 0 |" in markdown(found)

"""Against scikit-learn where it has the metric, else a calculation by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from training.metrics import auc, ece, gauc, logloss, ne, quality

ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60)


@given(ROWS.filter(lambda rows: len({label for _, label in rows}) == 2))
def test_auc_counts_ties_half(rows: list[tuple[int, bool]]) -> None:
    logit, label = (np.array(column, float) for column in zip(*rows, strict=True))
    assert auc(logit, label) == pytest.approx(roc_auc_score(label, logit), abs=1e-12)


@given(ROWS)
def test_logloss_from_logits(rows: list[tuple[int, bool]]) -> None:
    logit, label = (np.array(column, float) for column in zip(*rows, strict=True))
    expected = log_loss(label, 1 / (1 + np.exp(-logit)), labels=[0, 1])
    assert logloss(logit, label) == pytest.approx(expected, abs=1e-12)


def test_logloss_of_a_logit_that_overflows_exp() -> None:
    assert logloss(np.array([1000.0, -1000.0]), np.array([0, 1])) == 1000.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(-1, 4)), min_size=1, max_size=60))
def test_gauc_is_the_mean_of_users_aucs_weighted_by_rows(rows: list[tuple[int, bool, int]]) -> None:
    logit, label, user = (np.array(column, float) for column in zip(*rows, strict=True))
    users = [user == u for u in range(5)]
    aucs = [(roc_auc_score(label[m], logit[m]), m.sum()) for m in users if len(set(label[m])) == 2]
    found = gauc(logit, label, user.astype(int))
    if aucs:
        values, weights = zip(*aucs, strict=True)
        assert found == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    else:
        assert math.isnan(found)


def test_scores_that_are_not_finite_have_no_auc() -> None:
    label = np.array([0, 0, 1, 1])
    for logit in (np.full(4, np.nan), np.array([0.0, 1.0, np.inf, 2.0])):
        assert math.isnan(auc(logit, label))
        assert math.isnan(gauc(logit, label, np.zeros(4, int)))


def test_ne_by_hand() -> None:
    # Click rate 1/4: entropy 0.562335; always saying 1/2 costs ln 2 = 0.693147 a row.
    assert ne(np.zeros(4), np.array([1, 0, 0, 0])) == pytest.approx(0.693147 / 0.562335, abs=1e-5)


def test_ece_by_hand() -> None:
    # Two bins: p = 0.5 three times with 1 click of 3, |1.5 - 1| = 0.5; p = 0.9 once with a click, 0.1.
    logit = np.log(np.array([1, 1, 1, 9.0]))
    assert ece(logit, np.array([1, 0, 0, 1])) == pytest.approx((0.5 + 0.1) / 4, abs=1e-12)


def test_probability_1_is_in_the_last_bin() -> None:
    assert ece(np.array([1000.0]), np.array([1])) == 0.0


def test_what_is_not_defined_is_not_a_number() -> None:
    found = quality(np.array([0.1, 0.2]), np.array([1, 1]), np.array([0, 0]))
    assert found.rows == 2
    assert all(math.isnan(value) for value in (found.auc, found.gauc, found.ne))
    assert math.isfinite(found.logloss)
    nothing = quality(np.zeros(0), np.zeros(0), np.zeros(0, int))
    assert nothing.rows == 0
    assert math.isnan(nothing.logloss)

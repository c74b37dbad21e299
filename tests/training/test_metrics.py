"""Against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from training.metrics import auc, logloss, quality

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


def test_a_missing_class_has_no_auc() -> None:
    found = quality(np.array([0.1, 0.2]), np.array([1, 1]))
    assert found.rows == 2
    assert math.isnan(found.auc)

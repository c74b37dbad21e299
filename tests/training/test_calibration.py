from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from training.calibration import platt
from training.metrics import auc, logloss


def drawn(a: float, b: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=n)
    return logit, (rng.random(n) < 1 / (1 + np.exp(-(a * logit + b)))).astype(float)


def test_it_is_the_minimum_that_scipy_finds() -> None:
    logit, label = drawn(0.6, -1.0, 500)

    def loss(w: np.ndarray) -> float:
        z = w[0] * logit + w[1]
        return float((np.logaddexp(0, z) - label * z).sum() + 0.5 * ((w[0] - 1) ** 2 + w[1] ** 2))

    expected = minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
    assert platt(logit, label) == pytest.approx(tuple(expected), abs=1e-6)


def test_it_finds_what_the_labels_were_drawn_with_and_lowers_the_log_loss() -> None:
    logit, label = drawn(0.6, -1.0, 200_000)
    a, b = platt(logit, label)
    assert (a, b) == pytest.approx((0.6, -1.0), abs=0.02)
    assert logloss(a * logit + b, label) < logloss(logit, label) - 0.05
    assert auc(a * logit + b, label) == pytest.approx(auc(logit, label), abs=1e-9)


def test_order_is_never_turned() -> None:
    logit, label = drawn(-2.0, 0.5, 2_000)
    a, b = platt(logit, label)
    assert a == 1.0
    assert np.isfinite(b)


@pytest.mark.parametrize("label", [np.ones(20), np.zeros(20), (np.arange(20) > 9).astype(float), np.zeros(0)])
def test_one_class_separated_classes_and_no_rows_stay_finite(label: np.ndarray) -> None:
    a, b = platt(np.arange(len(label)) - 9.5, label)
    assert 0 < a < 100
    assert abs(b) < 100

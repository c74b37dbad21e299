"""Platt scaling: probabilities that mean what they say, domain by domain."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STEPS = 50
_PRIOR = 1.0
"""Precision of a normal prior around the identity, in rows' worth: it decides where there are few rows."""


def platt(logit: npt.NDArray[np.floating], label: npt.NDArray[np.generic]) -> tuple[float, float]:
    """(a, b) so that sigmoid(a * logit + b) fits the labels best (Platt 1999), by Newton's method.

    The prior keeps rows of one class, or perfectly separated ones, from sending it to infinity. Order is
    never turned: where a would not be above 0, only b is fitted.

    Args:
        logit: (n,) on rows that the model was not trained on.
        label: (n,) 0 or 1.
    """
    z, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    a, b = _newton(np.stack([z, np.ones_like(z)], 1), np.zeros_like(z), y, np.array([1.0, 0.0]))
    if a > 0:
        return float(a), float(b)
    (b,) = _newton(np.ones_like(z)[:, None], z, y, np.array([0.0]))
    return 1.0, float(b)


def _newton(
    x: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    centre: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """The minimum of the log loss of x w + offset plus the prior around `centre`; it is convex."""

    def loss(w: Floats) -> float:
        z = x @ w + offset
        return float((np.logaddexp(0, z) - y * z).sum() + _PRIOR / 2 * ((w - centre) ** 2).sum())

    w, at = centre, loss(centre)
    for _ in range(_STEPS):
        p = np.exp(-np.logaddexp(0, -(x @ w + offset)))
        gradient = x.T @ (p - y) + _PRIOR * (w - centre)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + _PRIOR * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        while (found := loss(w - step)) > at:
            step = step / 2
        converged = at - found <= 1e-12 * max(1.0, at)
        w, at = w - step, found
        if converged:
            break
    return w

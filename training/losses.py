"""Losses of a row, as pure functions."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from training.data.batches import Rows
from training.recipe import Distil


def click(logit: Tensor, rows: Rows, distil: Distil | None) -> Tensor:
    """Cross entropy of clicks, and of a teacher's probabilities where rows have a target.

    (1 - a) BCE(z, y) + a T^2 BCE(z / T, sigmoid(t / T)) (Hinton et al. 2015, eq. 4, for two classes; T^2
    keeps the gradient's size).

    Args:
        logit: z (B,).
        rows: y, and t where there is a target.
        distil: a and T.

    Returns:
        (B,).
    """
    hard = binary_cross_entropy_with_logits(logit, rows.label, reduction="none")
    if distil is None or rows.target is None:
        return hard
    T = distil.temperature
    taught = (rows.target[:, 0] / T).sigmoid()
    soft = binary_cross_entropy_with_logits(logit / T, taught, reduction="none") * T**2
    return (1 - distil.weight) * hard + distil.weight * soft


def apart(hidden: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of what the student and the teacher make of a row: (B, r) and (B, r) to (B,)."""
    return 1 - cosine_similarity(hidden, target, dim=1)

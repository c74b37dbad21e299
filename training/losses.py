"""Losses of a row, or of a batch, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize

from training.data.batches import Rows
from training.grades import Grades
from training.recipe import Align, Distil


def click(logit: Tensor, rows: Rows, distil: Distil | None, grades: Grades | None = None) -> Tensor:
    """Cross entropy of clicks, and of a teacher's probabilities where rows have a target.

    (1 - a) BCE(z, y) + a T^2 BCE(z / T, sigmoid(t / T)) (Hinton et al. 2015, eq. 4, for two classes; T^2
    keeps the gradient's size).

    Args:
        logit: z (B,).
        rows: y, and t where there is a target.
        distil: a and T.
        grades: what stands in the place of BCE(z, y) where rows have grades.

    Returns:
        (B,).
    """
    if grades is not None:
        hard = grades.loss(logit, rows)
    else:
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


def aligned(ids: Tensor, texts: Tensor, positive: Tensor, counted: Tensor, align: Align) -> Tensor:
    """How badly rows' ID representations and their texts' find each other (CSAMP, eq. 8, 9, 11 and 12).

    The mean over both directions of -log(sum over P_i of e^(cos_ij / T) / sum over j of e^(cos_ij / T)),
    averaged over rows i. One close positive of P_i suffices for that; the variant `supcon` has the mean over
    P_i of the logarithm of each (Khosla et al. 2020, eq. 2), so that all of them have to be close.

    Args:
        ids: (B, n).
        texts: (B, n).
        positive: (B, B), P_i in row i; never empty.
        counted: (B, B), which j are in the sum below; all of P_i are, and false negatives are not.
        align: T, and which loss.

    Returns:
        A scalar.
    """
    cosine = normalize(ids.float(), dim=1) @ normalize(texts.float(), dim=1).T
    score = cosine / align.temperature
    return (_found(score, positive, counted, align) + _found(score.T, positive, counted, align)) / 2


def _found(score: Tensor, positive: Tensor, counted: Tensor, align: Align) -> Tensor:
    """One direction: the mean over rows of (B, B)."""
    below = score.masked_fill(~(counted | positive), -torch.inf).logsumexp(1)
    if align.loss == "supcon":
        above = (score * positive).sum(1) / positive.sum(1)
    else:
        above = score.masked_fill(~positive, -torch.inf).logsumexp(1)
    return (below - above).mean()


@torch.no_grad()
def neighbours(texts: Tensor, domain: Tensor, k: int) -> Tensor:
    """Which texts are among the k most alike of other domains (CSAMP, eq. 10, with the maximum).

    Eq. 10 prints the minimum of a similarity, and its text says the closest.

    Args:
        texts: (n, width).
        domain: (n,).
        k: where other domains have fewer, there are fewer.

    Returns:
        (n, n): row i says which j are near i.
    """
    unit = normalize(texts.float(), dim=1)
    cosine = (unit @ unit.T).masked_fill(domain[:, None] == domain, -torch.inf)
    top, at = cosine.topk(min(k, len(texts)), dim=1)
    return torch.zeros_like(cosine, dtype=torch.bool).scatter(1, at, top > -torch.inf)

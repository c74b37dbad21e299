"""The contrast of rows and texts by hand and against the formulas of CSAMP in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from training.losses import aligned, neighbours
from training.recipe import Align

EYE = torch.eye(2)


def loss(ids: Tensor, texts: Tensor, positive: list[list[int]], kept: Any = None, **options: Any) -> float:
    given = torch.tensor(positive, dtype=torch.bool)
    counted = torch.ones_like(given) if kept is None else torch.tensor(kept, dtype=torch.bool)
    return float(aligned(ids, texts, given, counted, Align(**options)))


def test_two_rows_by_hand() -> None:
    """Cosines are 1 for a pair and 0 else, so both directions are log(1 + e^(-1/T)), whatever the lengths."""
    found = loss(3 * EYE, 0.1 * EYE, [[1, 0], [0, 1]], temperature=0.5, loss="ctrl")
    assert found == pytest.approx(math.log(1 + math.exp(-2)))


def test_one_close_positive_suffices_unless_each_counts() -> None:
    everything = [[1, 1], [1, 1]]
    assert loss(EYE, EYE, everything) == pytest.approx(0)
    # The mean of -log p over both texts: p = e^2 / (1 + e^2) and 1 / (1 + e^2).
    far = math.log(1 + math.exp(2)) - 1
    assert loss(EYE, EYE, everything, temperature=0.5, loss="supcon") == pytest.approx(far)


def test_false_negatives_do_not_count() -> None:
    own = [[1, 0], [0, 1]]
    assert loss(EYE, EYE, own, kept=[[1, 0], [0, 1]]) == pytest.approx(0)
    assert loss(EYE, EYE, own, kept=[[0, 0], [0, 0]]) == pytest.approx(0)  # positives always do
    assert loss(EYE, EYE, own, kept=[[1, 1], [0, 1]], temperature=0.5) == pytest.approx(
        math.log(1 + math.exp(-2)) / 2
    )


@pytest.mark.parametrize("kind", ["sec", "supcon"])
def test_against_the_formulas(kind: str) -> None:
    random = np.random.default_rng(0)
    ids, texts = random.normal(size=(2, 7, 5))
    positive = np.eye(7, dtype=bool) | (random.random((7, 7)) < 0.3)
    counted = positive | (random.random((7, 7)) < 0.7)

    def direction(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
        rows = []
        for i in range(7):
            cosine = [one[i] @ o / np.linalg.norm(one[i]) / np.linalg.norm(o) for o in other]
            e = np.exp(np.array(cosine) / 0.2)
            below = e[counted[i]].sum()
            if kind == "sec":
                rows.append(-np.log(e[positive[i]].sum() / below))
            else:
                rows.append(-np.log(e[positive[i]] / below).mean())
        return float(np.mean(rows))

    wanted = (direction(ids, texts) + direction(texts, ids)) / 2
    tensors = torch.tensor(ids), torch.tensor(texts)
    found = loss(*tensors, positive.tolist(), counted.tolist(), temperature=0.2, loss=kind)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_neighbours_are_the_closest_of_other_domains() -> None:
    angle = torch.tensor([0.0, 0.1, 0.2, 0.3, 3.0])
    texts = torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, 6)[:, None]
    domain = torch.tensor([0, 0, 1, 1, 1])
    assert neighbours(texts, domain, 1).long().tolist() == [
        [0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
    ]
    # More than there are: all of the other domains, and never one's own.
    assert torch.equal(neighbours(texts, domain, 9), domain[:, None] != domain)
    assert not neighbours(texts, torch.zeros(5), 2).any()

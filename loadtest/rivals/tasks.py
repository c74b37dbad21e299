"""A task for each domain, which is how libraries without domains train towers: a row counts for its own.

A row's labels are its label in the place of its domain, and `OTHERS` in all other places. A library's tower
computes every row all the same; what the loss leaves out costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

OTHERS = -1.0
"""The label of a row of another domain."""


def labels(label: npt.NDArray[Any], domain: npt.NDArray[Any], domains: int) -> npt.NDArray[np.float32]:
    """(n,) and (n,) to (n, D)."""
    found = np.full((len(label), domains), OTHERS, np.float32)
    found[np.arange(len(label)), domain] = label
    return found


def own_rows(probability: Tensor, label: Tensor, reduction: str = "mean") -> Tensor:
    """The cross entropy of a domain's rows; the mean is over all rows, so that domains' losses add up."""
    weight = (label != OTHERS).float()
    return binary_cross_entropy(probability, label.clamp(min=0), weight=weight, reduction=reduction)

"""APG (Yan et al., NeurIPS 2022), group-wise: a domain owns a K by K matrix and a bias of every layer.

A layer is y = relu(((x U) S_d) V + b_d) with U and V shared and S_d and b_d generated from the domain's
embedding. In training U and V are products of larger matrices, as in the paper; in the exported graph those
are constants, which an engine multiplies out when it loads. The network stands beside any backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.nn.ranker import MakeBackbone
from training.paradigms import _modulated
from training.paradigms._modulated import Beside, Condition, Layer, Modulated, Modulation, product


class Options(_modulated.Options):
    """The same, and how wide U and V are inside."""

    inner: Annotated[int, Field(ge=1)] = 32
    """P of U = U1 (N, P) U2 (P, K) and V = V1 (K, P) V2 (P, M)."""


class LowRank(Layer):
    """x U (S_d V) + b_d, which is of rank K; x U keeps the parts apart, and S_d V is once for all rows."""

    def __init__(self, inputs: Sequence[int], out: int, *, rank: int, inner: int) -> None:
        super().__init__()
        self.left = nn.ParameterList([_matrix(sum(inputs), inner), _matrix(inner, rank)])
        self.right = nn.ParameterList([_matrix(rank, inner), _matrix(inner, out)])

    def forward(self, parts: Sequence[Tensor], given: Modulation) -> Tensor:
        """Parts (R, ...) and (B, ...), or one (B, N), to (B, M)."""
        U, V = self.left[0] @ self.left[1], self.right[0] @ self.right[1]
        low = product(parts, U)
        y: Tensor = (low[:, None] @ (given.matrix @ V))[:, 0] + given.bias
        return y


def build(
    options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int
) -> Modulated:
    """Beside any backbone; S_d starts near the unit matrix, so that all domains start near x U V."""
    layer = partial(LowRank, rank=options.rank, inner=options.inner)
    body = Beside(options, schema, backbone, dim, layer)
    return Modulated(body, Condition(options, dim, domains, torch.eye(options.rank)))


def _matrix(width: int, out: int) -> Tensor:
    """(width, out), which keeps the variance."""
    return torch.randn(width, out) / math.sqrt(width)

"""MI-DPG (CIKM 2023, arXiv 2603.21209): a domain owns a K by K matrix and a bias of every layer.

A layer's weights are W (.) G_d with G_d = 1 + U S_d V: every weight is modulated, at the cost of a low rank.
W, U and V are shared, S_d and b_d generated from the domain's embedding. So that domains do not end with the
same weights, the loss rewards the mutual information of a domain's embedding and its matrices. The paper's
abstract says no more than that of either; the factors, and InfoNCE (van den Oord et al. 2018, eq. 4) as the
lower bound of the information, are ours. The network stands beside any backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.ranker import MakeBackbone
from training.paradigms import _modulated
from training.paradigms._modulated import Beside, Condition, Layer, Modulated, Modulation, product


class Options(_modulated.Options):
    """The same, and how the mutual information counts."""

    beta: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the bound in the loss."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the cosines in the bound."""


class Weighted(Layer):
    """x (W (.) (1 + U S_d V)) + b_d.

    All domains start near x W, as S_d starts small. U and V do not: what is small of the three learns by
    the others' size, and with U and V a tenth as large AUC on the synthetic data was .005 lower.
    """

    def __init__(self, inputs: Sequence[int], out: int, *, rank: int) -> None:
        super().__init__()
        width = sum(inputs)
        self.weight = nn.Parameter(torch.empty(width, out).uniform_(-1, 1) * width**-0.5)
        self.left = nn.Parameter(torch.randn(width, rank))
        self.right = nn.Parameter(torch.randn(rank, out))

    def forward(self, parts: Sequence[Tensor], given: Modulation) -> Tensor:
        """Parts (R, ...) and (B, ...), or one (B, N), to (B, M)."""
        factor = given.matrix @ self.right
        if factor.dim() == 2:
            return product(parts, self.weight * (1 + self.left @ factor)) + given.bias
        # No row's weights are written out: with u_k and f_k the K columns and rows of U and S_d V,
        # x (W (.) (U S_d V)) is the sum over k of f_k (.) (x (W (.) u_k 1')).
        scaled = (self.left[:, :, None] * self.weight[:, None, :]).flatten(1)
        apart = product(parts, scaled).view_as(factor)
        return product(parts, self.weight) + (apart * factor).sum(1) + given.bias


class MIDPG(Modulated):
    """The modulated network, trained for domains that can be told by their matrices."""

    project: Tensor
    """(all of a domain's S_d, dim): what matrices are compared with embeddings by. It is random and stays so:
    a critic that learned could tell matrices apart that hardly differ."""

    def __init__(self, options: Options, body: Beside, condition: Condition) -> None:
        super().__init__(body, condition)
        self.beta, self.temperature = options.beta, options.temperature
        size = len(options.hidden) * options.rank**2
        self.register_buffer("project", torch.randn(size, condition.embedding.shape[1]))

    def extra(self, rows: Rows) -> Tensor | None:
        """- beta times InfoNCE, over the domains of a joint batch; None where there are no two of them."""
        present = torch.unique(rows.domain)
        present = present[present < len(self.condition.embedding) - 1]  # the general one is no domain
        if len(present) < 2 or not self.beta:
            return None
        matrices = torch.cat([layer.matrix[present].flatten(1) for layer in self.condition()], 1)
        return self.beta * info_nce(
            self.condition.embedding[present], matrices @ self.project, self.temperature
        )


def info_nce(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """How badly rows of `one` are told by those of `other`: log n minus a bound on their information.

    Args:
        one: (n, K).
        other: (n, K), whose row i belongs to row i of `one`, and is a negative for the others.
        temperature: of the cosines.
    """
    cosine = F.normalize(one) @ F.normalize(other).T
    return F.cross_entropy(cosine / temperature, torch.arange(len(one), device=one.device))


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> MIDPG:
    """Beside any backbone."""
    body = Beside(options, schema, backbone, dim, partial(Weighted, rank=options.rank))
    return MIDPG(options, body, Condition(options, dim, domains, torch.zeros(options.rank, options.rank)))

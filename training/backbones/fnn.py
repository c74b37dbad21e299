"""FNN (Zhang, Du and Wang, ECIR 2016): tanh layers over the field vectors (eq. 1 to 3).

What sets it apart from `wide_deep` is the paper's network: tanh, and no normalisation. Libraries call an MLP
with ReLU by this name, which differs from Wide & Deep in that it has no first-order part beside it; here the
paradigm adds that to every backbone, so that FNN is `wide_deep`.

Left out is the start from a trained factorisation machine, whose weight w_i and vector v_i make up a field's
input (eq. 5): embeddings are the paradigm's, and are trained with the network from their usual start.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Dropout, ScopedLinear, flat, no_logit


class Options(BaseModel):
    """The network's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (16, 16)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class FNN(Backbone):
    """logit = head(l_2), with l_2 = tanh(W_2 l_1 + b_2) and l_1 = tanh(W_1 z + b_1)."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        self.width = options.hidden[-1]
        self.first = ScopedLinear(request * dim, item * dim, options.hidden[0])
        self.rest = nn.ModuleList(nn.Linear(width, out) for width, out in pairwise(options.hidden))
        self.dropout = Dropout(options.dropout)

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H) and zeros (B,)."""
        hidden = self.dropout(torch.tanh(self.first(flat(request), flat(item))))
        for layer in self.rest:
            hidden = self.dropout(torch.tanh(layer(hidden)))
        return Interaction(hidden, no_logit(hidden))


def build(options: Options, request: int, item: int, dim: int) -> FNN:
    """An FNN over `request` + `item` fields of `dim`."""
    return FNN(options, request, item, dim)

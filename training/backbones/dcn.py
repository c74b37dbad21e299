"""Deep & Cross Network (Wang et al., ADKDD 2017): a cross network beside an MLP, over the same vectors."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Norm, ScopedMLP, flat, no_logit


class Options(BaseModel):
    """How many cross layers, and the MLP's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Field(ge=1)] = 3
    """Of the cross network."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (16, 16)
    norm: Norm = "batch"
    """Of the MLP."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Of the MLP."""


class Cross(nn.Module):
    """x_{l+1} = x_0 (w_l . x_l) + b_l + x_l (eq. 3), with x_0 = [request ; item] of N numbers.

    By induction x_l = a_l x_0 + s_l, where a_l is one number a row and s_l = b_0 + .. + b_{l-1} the same for
    all rows. So a row is read once, for the numbers w_l . x_0 of all layers, which are sums of the request's
    and the item's; then a_{l+1} = a_l (1 + w_l . x_0) + w_l . s_l.
    """

    def __init__(self, request: int, item: int, layers: int) -> None:
        super().__init__()
        self.request = request
        bound = (request + item) ** -0.5
        self.weight = nn.Parameter(torch.empty(layers, request + item).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(layers, request + item))

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, N_q) and (B, N_i) to (B, N)."""
        dots = F.linear(request, self.weight[:, : self.request])
        dots = dots + F.linear(item, self.weight[:, self.request :])
        first, *others = torch.split(dots, 1, 1)
        scale, shift = 1 + first, self.bias[0]
        for at, dot in enumerate(others, 1):
            scale = scale * (1 + dot) + (self.weight[at] * shift).sum(0)
            shift = shift + self.bias[at]
        return torch.cat([scale * request, scale * item], 1) + shift


class DCN(Backbone):
    """logit = head([cross network ; MLP])."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        widths = request * dim, item * dim
        self.width = sum(widths) + options.hidden[-1]
        self.cross = Cross(*widths, options.layers)
        self.mlp = ScopedMLP(*widths, options.hidden, options.norm, options.dropout)

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H), crossed numbers first, and zeros (B,)."""
        of_request, of_item = flat(request), flat(item)
        hidden = torch.cat([self.cross(of_request, of_item), self.mlp(of_request, of_item)], 1)
        return Interaction(hidden, no_logit(hidden))


def build(options: Options, request: int, item: int, dim: int) -> DCN:
    """A DCN over `request` + `item` fields of `dim`."""
    return DCN(options, request, item, dim)

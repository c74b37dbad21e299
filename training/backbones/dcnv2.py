"""DCN-V2 (Wang et al., WWW 2021): a cross network of matrices, beside an MLP or in front of it.

A layer's matrix is whole or of low rank; the paper's mixture of several such matrices is left out.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Norm, ScopedLinear, ScopedMLP, flat, hidden_layers, no_logit


class Options(BaseModel):
    """The cross network's shape, the MLP's, and where that stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Field(ge=1)] = 2
    """Of the cross network."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of a layer's matrix, W = U V^T; None: a whole matrix."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Whether the MLP is over the fields or over the cross network (Figure 1)."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (16, 16)
    norm: Norm = "batch"
    """Of the MLP."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Of the MLP."""


class Cross(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, element by element (eq. 1), with x_0 = [request ; item].

    The request's half of the first layer's product is computed on its own rows.
    """

    def __init__(self, request: int, item: int, layers: int, rank: int | None) -> None:
        super().__init__()
        width = request + item
        self.widths = [request, item]
        inner, whole = rank or width, rank is None
        self.first = ScopedLinear(request, item, inner, bias=whole)
        self.rest = nn.ModuleList(nn.Linear(width, inner, bias=whole) for _ in range(layers - 1))
        """V_l^T, or W_l and b_l."""
        self.out = nn.ModuleList(nn.Identity() if whole else nn.Linear(inner, width) for _ in range(layers))
        """U_l and b_l, if the rank is low."""

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, N_q) and (B, N_i) to (B, N_q + N_i)."""
        first, *others = self.out
        x = self._times(request, item, 1 + first(self.first(request, item)))
        for layer, out in zip(self.rest, others, strict=True):
            x = x + self._times(request, item, out(layer(x)))
        return x

    def _times(self, request: Tensor, item: Tensor, factor: Tensor) -> Tensor:
        """x_0 * factor (B, N), the request's row repeated by no more than the product."""
        of_request, of_item = torch.split(factor, self.widths, 1)
        return torch.cat([request * of_request, item * of_item], 1)


class DCNv2(Backbone):
    """logit = head([cross network ; MLP(fields)]), or head(MLP(cross network))."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        widths = request * dim, item * dim
        self.cross = Cross(*widths, options.layers, options.rank)
        self.stacked = options.structure == "stacked"
        make = partial(hidden_layers, sum(widths)) if self.stacked else partial(ScopedMLP, *widths)
        self.mlp = make(options.hidden, options.norm, options.dropout)
        self.width = options.hidden[-1] + (0 if self.stacked else sum(widths))

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H), crossed numbers first if any, and zeros (B,)."""
        scopes = flat(request), flat(item)
        crossed = self.cross(*scopes)
        hidden = self.mlp(crossed) if self.stacked else torch.cat([crossed, self.mlp(*scopes)], 1)
        return Interaction(hidden, no_logit(hidden))


def build(options: Options, request: int, item: int, dim: int) -> DCNv2:
    """A DCN-V2 over `request` + `item` fields of `dim`."""
    return DCNv2(options, request, item, dim)

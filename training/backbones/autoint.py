"""AutoInt (Song et al., CIKM 2019): fields attend to fields; with an MLP beside that it is AutoInt+."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Norm, ScopedMLP, flat, no_logit

Positive = Annotated[int, Field(ge=1)]


class Options(BaseModel):
    """The attention's shape, and the MLP's if there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Positive = 2
    heads: Positive = 2
    units: Positive = 8
    """Of a head."""
    hidden: tuple[Positive, ...] = ()
    """Of the MLP; without any there is none."""
    norm: Norm = "batch"
    """Of the MLP."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Of the MLP."""


class Projected(NamedTuple):
    """What a layer makes of fields: of each head (n, heads, F, units), and what is added at the end."""

    query: Tensor
    key: Tensor
    value: Tensor
    residual: Tensor
    """(n, F, heads * units)."""


class Attention(nn.Module):
    """ReLU(sum over k of softmax_k(<W_Q e_m, W_K e_k>) W_V e_k + W_R e_m) of each field m (eq. 5 to 8)."""

    def __init__(self, width: int, heads: int, units: int) -> None:
        super().__init__()
        self.shape = heads, units
        self.project = nn.Linear(width, 4 * heads * units, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(B, F, width) to (B, F, heads * units)."""
        own = self.projected(fields)
        # Keys first: a softmax of neighbours in memory that are as few as fields takes a third longer.
        weights = torch.softmax(own.key @ own.query.transpose(2, 3), 2)
        return _out(weights.transpose(2, 3) @ own.value, own.residual)

    def of_both(self, request: Tensor, item: Tensor) -> Tensor:
        """The same of fields (1, F_q, width) and (B, F_i, width), the request's first: (B, F, ..).

        What a scope's fields make of themselves is computed on its own rows. A softmax over two sets of
        fields is a mean of those over each, under the sums of exponentials that these were divided by.
        """
        scopes = [self.projected(request), self.projected(item)]
        found = []
        for own in scopes:
            (of_request, sum_request), (of_item, sum_item) = (_attended(own.query, each) for each in scopes)
            share = torch.sigmoid(sum_request - sum_item)
            found.append(_out(of_item + share * (of_request - of_item), own.residual))
        return torch.cat(found, 1)

    def projected(self, fields: Tensor) -> Projected:
        """Of (n, F, width)."""
        *parts, residual = self.project(fields).chunk(4, 2)
        query, key, value = (part.unflatten(2, self.shape).transpose(1, 2) for part in parts)
        return Projected(query, key, value, residual)


def _attended(query: Tensor, fields: Projected) -> tuple[Tensor, Tensor]:
    """The mean of values (n, heads, m, units), and the logarithm of its divisor (n, heads, m, 1)."""
    scores = query @ fields.key.transpose(2, 3)
    most = scores.amax(3, True)
    weights = torch.exp(scores - most)
    total = weights.sum(3, True)
    return weights @ fields.value / total, most + torch.log(total)


def _out(seen: Tensor, residual: Tensor) -> Tensor:
    return torch.relu(seen.transpose(1, 2).flatten(2) + residual)


class AutoInt(Backbone):
    """logit = head([attended fields ; MLP]) (eq. 9)."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        out = options.heads * options.units
        self.first = Attention(dim, options.heads, options.units)
        self.rest = nn.Sequential(
            *(Attention(out, options.heads, options.units) for _ in range(options.layers - 1))
        )
        self.mlp = None
        self.width = (request + item) * out
        if options.hidden:
            self.mlp = ScopedMLP(request * dim, item * dim, options.hidden, options.norm, options.dropout)
            self.width += options.hidden[-1]

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H), attended fields first, and zeros (B,)."""
        one = request.shape[0] == 1  # not `len`, which an export would fix, rows and all
        fields = self.first.of_both(request, item) if one else self.first(torch.cat([request, item], 1))
        hidden = flat(self.rest(fields))
        if self.mlp is not None:
            hidden = torch.cat([hidden, self.mlp(flat(request), flat(item))], 1)
        return Interaction(hidden, no_logit(hidden))


def build(options: Options, request: int, item: int, dim: int) -> AutoInt:
    """An AutoInt over `request` + `item` fields of `dim`."""
    return AutoInt(options, request, item, dim)

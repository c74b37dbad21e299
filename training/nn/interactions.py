"""Feature interactions, written so that a request's share is computed once for all its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["batch", "layer", "none"]


def fm(request: Tensor, item: Tensor) -> Tensor:
    """Second-order factorisation machine over all fields (Rendle 2010, eq. 5; DeepFM, eq. 2).

    With s the sum and q the sum of squares of a scope's field vectors, summed over K:
    FM(request + item) = ((s_request + s_item)^2 - q_request - q_item) / 2
                       = FM(request) + FM(item) + <s_request, s_item>,
    of which the second form is what is exported: FM(item) is a number that an item has of itself.

    Args:
        request: (R, F_q, K), R = 1 or B.
        item: (B, F_i, K).

    Returns:
        (B,).
    """
    if torch.compiler.is_exporting():
        of_request, of_item = request.sum(1), item.sum(1)
        return _fm(request, of_request) + (_fm(item, of_item) + (of_request * of_item).sum(1))
    total = request.sum(1) + item.sum(1)
    return 0.5 * (total.square().sum(1) - request.square().sum((1, 2)) - item.square().sum((1, 2)))


def _fm(fields: Tensor, total: Tensor) -> Tensor:
    """Of one scope: (n, F, K) and their sum (n, K) to (n,)."""
    return 0.5 * ((total * total).sum(1) - (fields * fields).sum((1, 2)))


class Dropout(nn.Module):
    """As `nn.Dropout`, whose mask takes a CPU twice as long to draw."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """In train mode `x` with a share of its values zeroed and the others scaled up, else `x`."""
        if not self.training:
            return x
        return x * torch.rand_like(x).ge_(self.share).mul_(1 / (1 - self.share))


class ScopedLinear(nn.Module):
    """A linear layer over [request ; item], the request's half computed on its own rows."""

    def __init__(self, request: int, item: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.request = nn.Linear(request, out, bias=bias)
        self.item = nn.Linear(item, out, bias=False)
        # As one layer over both: the fan-in that decides the scale is the sum of the two.
        bound = (request + item) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, request) and (B, item) to (B, out)."""
        out: Tensor = self.request(request) + self.item(item)
        return out


class ScopedMLP(nn.Module):
    """Hidden layers over [request ; item]; every layer is linear, norm, ReLU, dropout."""

    def __init__(self, request: int, item: int, hidden: Sequence[int], norm: Norm, dropout: float) -> None:
        super().__init__()
        self.first = ScopedLinear(request, item, hidden[0])
        rest = hidden_layers(hidden[0], hidden[1:], norm, dropout)
        self.rest = nn.Sequential(*_after_linear(hidden[0], norm, dropout), *rest)

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, request) and (B, item) to (B, hidden[-1])."""
        out: Tensor = self.rest(self.first(request, item))
        return out


def hidden_layers(width: int, hidden: Sequence[int], norm: Norm, dropout: float) -> nn.Sequential:
    """As those of `ScopedMLP`, over (n, width), to (n, hidden[-1])."""
    layers: list[nn.Module] = []
    for width_in, out in pairwise([width, *hidden]):
        layers += [nn.Linear(width_in, out), *_after_linear(out, norm, dropout)]
    return nn.Sequential(*layers)


def _after_linear(width: int, norm: Norm, dropout: float) -> list[nn.Module]:
    norms: dict[Norm, list[nn.Module]] = {
        "batch": [nn.BatchNorm1d(width)],
        "layer": [nn.LayerNorm(width)],
        "none": [],
    }
    return [*norms[norm], nn.ReLU(), *([Dropout(dropout)] if dropout else [])]


def mlp(width: int, hidden: Sequence[int], out: int) -> nn.Sequential:
    """Linear layers with ReLU between them, (n, width) to (n, out)."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, out))


def no_logit(hidden: Tensor) -> Tensor:
    """Zeros (B,) beside hidden units (B, H), for a backbone that has no direct logit."""
    # A graph has no constant of B numbers: its length would be one more thing to compute.
    return hidden[:, 0] * 0 if torch.compiler.is_exporting() else hidden.new_zeros(len(hidden))


def flat(fields: Tensor) -> Tensor:
    """(n, F, K) to (n, F * K)."""
    return torch.flatten(fields, 1)

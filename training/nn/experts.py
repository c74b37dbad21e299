"""Experts: several networks over the same fields, and the gate that mixes them (Jacobs et al. 1991)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.backbones._protocol import Backbone
from training.nn.interactions import ScopedLinear, mlp


class Experts(nn.Module):
    """E backbones, each with parameters of its own."""

    def __init__(self, backbones: Sequence[Backbone]) -> None:
        super().__init__()
        self.each = nn.ModuleList(backbones)

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """What each makes of a row's fields.

        Args:
            request: (R, F_q, K), R = 1 or B.
            item: (B, F_i, K).

        Returns:
            (B, E, H + 1): hidden units and, last, the direct logit.
        """
        return torch.stack([self.one(at, request, item) for at in range(len(self.each))], 1)

    def one(self, at: int, request: Tensor, item: Tensor) -> Tensor:
        """What one of them makes of a row's fields: (B, H + 1), of what `forward` takes."""
        expert = self.each[at]
        if self.training:
            expert.train(len(item) > 1)  # a BatchNorm has no statistics of one row
        hidden, logit = expert(request, item)
        return torch.cat([hidden, logit[:, None]], 1)


class Gate(ScopedLinear):
    """A softmax over E experts of the fields; as a layer, what that softmax is of.

    Its weights start small, so that all experts count alike at first, and nothing normalises what the softmax
    is of.
    """

    def __init__(self, request: int, item: int, experts: int) -> None:
        super().__init__(request, item, experts)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01)

    def mean(self, request: Tensor, item: Tensor, found: Tensor) -> Tensor:
        """Of what experts found, direct logits included, under the gate.

        Args:
            request: (R, F_q * K), what the gate sees of the request; R = 1 or B.
            item: (B, F_i * K), what it sees of the item.
            found: (B, E, H + 1), as `Experts` give it.

        Returns:
            (B, H + 1).
        """
        weights = torch.softmax(self(request, item), 1)
        return (weights[:, :, None] * found).sum(1)


class Tower(nn.Sequential):
    """Layers over hidden units, to whose logit the direct one is added."""

    def __init__(self, hidden: int, layers: Sequence[int]) -> None:
        super().__init__(*mlp(hidden, layers, 1))

    def forward(self, found: Tensor) -> Tensor:
        """(B, H + 1) to logits (B,)."""
        logit: Tensor = super().forward(found[:, :-1])[:, 0]  # type: ignore[no-untyped-call]
        return logit + found[:, -1]


class Mixture(nn.Module):
    """A gate over E experts, and a tower over their mean under it (MMoE, section 4.2; PLE, section 4.1)."""

    def __init__(self, request: int, item: int, experts: int, hidden: int, tower: Sequence[int]) -> None:
        super().__init__()
        self.gate = Gate(request, item, experts)
        self.tower = Tower(hidden, tower)

    def forward(self, request: Tensor, item: Tensor, found: Tensor) -> Tensor:
        """What `Gate.mean` takes to logits (B,)."""
        logit: Tensor = self.tower(self.gate.mean(request, item, found))
        return logit

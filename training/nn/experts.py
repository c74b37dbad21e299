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
        if self.training:
            self.each.train(len(item) > 1)  # a BatchNorm has no statistics of one row
        found = [expert(request, item) for expert in self.each]
        return torch.stack([torch.cat([hidden, logit[:, None]], 1) for hidden, logit in found], 1)


class Mixture(nn.Module):
    """A gate over E experts, and a tower over their mean under it (MMoE, section 4.2; PLE, section 4.1).

    The experts' direct logits are averaged by the same gate. Its weights start small, so that all experts
    count alike at first, and nothing normalises what the softmax is of.
    """

    def __init__(self, request: int, item: int, experts: int, hidden: int, tower: Sequence[int]) -> None:
        super().__init__()
        self.gate = ScopedLinear(request, item, experts)
        for parameter in self.gate.parameters():
            nn.init.normal_(parameter, std=0.01)
        self.tower = mlp(hidden, tower, 1)

    def forward(self, request: Tensor, item: Tensor, found: Tensor) -> Tensor:
        """Logits.

        Args:
            request: (R, F_q * K), what the gate sees of the request; R = 1 or B.
            item: (B, F_i * K), what it sees of the item.
            found: (B, E, H + 1), as `Experts` give it.

        Returns:
            (B,).
        """
        weights = torch.softmax(self.gate(request, item), 1)
        mean = (weights[:, :, None] * found).sum(1)
        logit: Tensor = self.tower(mean[:, :-1])[:, 0] + mean[:, -1]
        return logit

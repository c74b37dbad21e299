"""User prompts: a vector in front of the fields, made from the user's profile (PLATE, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.nn.interactions import mlp


class Generative(nn.Module):
    """An MLP from the profile straight to the prompt.

    Its last layer starts at zero, so the prompt starts at zero as in the paper (A.3), while gradients
    reach the hidden layers from the first step on. With *all* layers at zero, as published, hidden units
    stay at relu(0) = 0 and every user has the same prompt for ever.
    """

    def __init__(self, profile: int, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = mlp(profile, hidden, dim)
        last = self.layers[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, profile: Tensor) -> Tensor:
        """(R, profile) to (R, K)."""
        out: Tensor = self.layers(profile)
        return out


class Fusion(nn.Module):
    """Attention over R meta-prompts, with weights that an MLP makes from the profile (eq. 5 and 6).

    `temperature` divides the logits. The published 1e-5 makes the softmax an argmax without a gradient,
    so that users are never routed anew; values in 0.1..1 learn.
    """

    def __init__(
        self, profile: int, dim: int, hidden: Sequence[int], prompts: int, temperature: float
    ) -> None:
        super().__init__()
        self.layers = mlp(profile, hidden, prompts)
        self.meta = nn.Parameter(torch.empty(prompts, dim).uniform_(-0.01, 0.01))
        self.temperature = temperature

    def forward(self, profile: Tensor) -> Tensor:
        """(R, profile) to (R, K)."""
        weights = torch.softmax(self.layers(profile) / self.temperature, 1)
        return weights @ self.meta

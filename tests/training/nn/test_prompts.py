from __future__ import annotations

import pytest
import torch

from training.nn.prompts import Fusion, Generative


def test_generative_starts_at_zero_but_learns() -> None:
    prompt = Generative(6, 4, (8, 8))
    profile = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert not prompt(profile).any()  # the paper, A.3: user prompts are initialised by zero
    optimiser = torch.optim.SGD(prompt.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (prompt(profile) * torch.arange(20.0).view(5, 4)).sum().backward()
        optimiser.step()
    assert (prompt(profile).std(0) > 0).all()  # not one vector for all users, as with all layers at zero


def test_fusion_is_the_weighted_sum_of_meta_prompts() -> None:
    prompt = Fusion(2, 3, (4,), prompts=2, temperature=0.5)
    with torch.no_grad():
        for parameter in prompt.layers.parameters():
            parameter.zero_()
        list(prompt.layers.parameters())[-1].copy_(torch.tensor([0.0, 1.0]))
        prompt.meta.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    # Eq. 6 by hand: weights e^0 and e^(1 / 0.5), normalised: 0.119203, 0.880797.
    assert prompt(torch.ones(1, 2))[0].tolist() == pytest.approx([0.119203, 0.880797, 0.0], abs=1e-6)


def test_every_parameter_of_fusion_gets_a_gradient_at_the_start() -> None:
    prompt = Fusion(6, 4, (8,), prompts=3, temperature=1.0)
    profile = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    (prompt(profile) * torch.randn(5, 4)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in prompt.parameters())

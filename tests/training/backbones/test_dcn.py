"""DCN's cross network against its recursion (eq. 3): by hand, and as a loop in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.backbones.dcn import Cross, Options, build


def test_two_layers_by_hand() -> None:
    cross = Cross(1, 1, 2)
    with torch.no_grad():
        cross.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        cross.bias.copy_(torch.tensor([[0.5, 0.0], [0.0, -1.0]]))
    # x_1 = (1, 2) * 3 + (.5, 0) + (1, 2) = (4.5, 8); x_2 = (1, 2) * 4.5 + (0, -1) + (4.5, 8)
    assert cross(torch.tensor([[1.0]]), torch.tensor([[2.0]])).tolist() == [[9.0, 16.0]]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_layers_are_the_papers_recursion(layers: int) -> None:
    torch.manual_seed(layers)
    cross = Cross(3, 4, layers)
    torch.nn.init.normal_(cross.bias)
    request, item = torch.randn(1, 3), torch.randn(6, 4)
    weight, bias = cross.weight.detach().numpy(), cross.bias.detach().numpy()
    for row, found in zip(item.numpy(), cross(request, item).detach().numpy(), strict=True):
        x = first = np.concatenate([request[0].numpy(), row])
        for w, b in zip(weight, bias, strict=True):
            x = np.outer(first, x) @ w + b + x
        np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_hidden_units_are_the_crossed_numbers_and_the_mlps() -> None:
    backbone = build(Options(hidden=(5, 3)), 2, 1, 4).eval()
    request, item = torch.randn(6, 2, 4), torch.randn(6, 1, 4)
    hidden, logit = backbone(request, item)
    assert backbone.width == 3 * 4 + 3
    flat = request.flatten(1), item.flatten(1)
    assert torch.equal(hidden[:, :12], backbone.cross(*flat))
    assert torch.equal(hidden[:, 12:], backbone.mlp(*flat))
    assert not logit.any()

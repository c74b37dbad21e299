"""DCN-V2's cross network against eq. 1: by hand, and as a loop in numpy, with whole and low-rank matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.backbones.dcnv2 import Cross, Options, build


def test_one_layer_by_hand() -> None:
    cross = Cross(1, 1, 1, None)
    with torch.no_grad():
        cross.first.request.weight.copy_(torch.tensor([[1.0], [0.0]]))
        cross.first.item.weight.copy_(torch.tensor([[2.0], [3.0]]))
        cross.first.request.bias.copy_(torch.tensor([0.0, -1.0]))
    # W x_0 + b = (1 + 4, 6 - 1), times x_0 = (1, 2), plus x_0
    assert cross(torch.tensor([[1.0]]), torch.tensor([[2.0]])).tolist() == [[6.0, 12.0]]


def matrices(cross: Cross, rank: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """W_l and b_l of each layer, whatever they are made of."""
    tensors = {name: tensor.numpy() for name, tensor in cross.state_dict().items()}
    inner = [np.hstack([tensors["first.request.weight"], tensors["first.item.weight"]])]
    inner += [tensors[f"rest.{at}.weight"] for at in range(len(cross.rest))]
    if rank is None:
        bias = ["first.request.bias", *(f"rest.{at}.bias" for at in range(len(cross.rest)))]
        return [(weight, tensors[name]) for weight, name in zip(inner, bias, strict=True)]
    return [
        (tensors[f"out.{at}.weight"] @ weight, tensors[f"out.{at}.bias"]) for at, weight in enumerate(inner)
    ]


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("layers", [1, 3])
def test_layers_are_the_papers_recursion(layers: int, rank: int | None) -> None:
    torch.manual_seed(layers)
    cross = Cross(3, 4, layers, rank)
    request, item = torch.randn(1, 3), torch.randn(6, 4)
    found = cross(request, item)
    torch.testing.assert_close(cross(request.expand(6, -1), item), found)
    for row, result in zip(item.numpy(), found.detach().numpy(), strict=True):
        x = first = np.concatenate([request[0].numpy(), row])
        for weight, bias in matrices(cross, rank):
            assert rank is None or np.linalg.matrix_rank(weight) == rank
            x = first * (weight @ x + bias) + x
        np.testing.assert_allclose(result, x, rtol=1e-4, atol=1e-5)


def test_the_mlp_stands_beside_the_cross_network_or_behind_it() -> None:
    request, item = torch.randn(6, 2, 4), torch.randn(6, 1, 4)
    flat = request.flatten(1), item.flatten(1)

    beside = build(Options(hidden=(5, 3)), 2, 1, 4).eval()
    hidden, logit = beside(request, item)
    assert beside.width == 3 * 4 + 3
    assert torch.equal(hidden, torch.cat([beside.cross(*flat), beside.mlp(*flat)], 1))
    assert not logit.any()

    behind = build(Options(hidden=(5, 3), structure="stacked"), 2, 1, 4).eval()
    hidden, logit = behind(request, item)
    assert behind.width == 3
    assert torch.equal(hidden, behind.mlp(behind.cross(*flat)))
    assert not logit.any()

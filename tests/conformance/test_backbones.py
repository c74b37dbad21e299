"""What every backbone promises."""

from __future__ import annotations

import pytest
import torch

from service.contract import plugins
from training.backbones._protocol import Backbone

DIM = 4


def made(name: str, request: int, item: int, seed: int = 0) -> Backbone:
    module = plugins.load("training.backbones", name)
    torch.manual_seed(seed)
    return module.build(module.Options(), request, item, DIM).eval()  # type: ignore[no-any-return]


pytestmark = pytest.mark.parametrize("name", plugins.names("training.backbones"))


@pytest.mark.parametrize(("request_fields", "item_fields"), [(1, 1), (5, 2), (2, 7)])
@pytest.mark.parametrize("rows", [1, 6])
def test_shapes(name: str, request_fields: int, item_fields: int, rows: int) -> None:
    backbone = made(name, request_fields, item_fields)
    for request_rows in {1, rows}:
        hidden, logit = backbone(
            torch.randn(request_rows, request_fields, DIM), torch.randn(rows, item_fields, DIM)
        )
        assert hidden.shape == (rows, backbone.width)
        assert logit.shape == (rows,)


def test_one_request_row_is_that_row_for_every_candidate(name: str) -> None:
    backbone = made(name, 3, 2)
    request, item = torch.randn(1, 3, DIM), torch.randn(5, 2, DIM)
    for one, repeated in zip(backbone(request, item), backbone(request.expand(5, -1, -1), item), strict=True):
        torch.testing.assert_close(one, repeated)


def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    backbone = made(name, 3, 2)
    request, item = torch.randn(1, 3, DIM), torch.randn(5, 2, DIM)
    changed = item.clone()
    changed[1:] = 9.0
    for before, after in zip(backbone(request, item), backbone(request, changed), strict=True):
        assert torch.equal(before[0], after[0])


def test_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = made(name, 3, 2).train()
    hidden, logit = backbone(torch.randn(32, 3, DIM), torch.randn(32, 2, DIM))
    ((hidden * torch.randn_like(hidden)).sum() + (logit**2).sum()).backward()
    dead = [
        key
        for key, parameter in backbone.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # A bias in front of a BatchNorm is subtracted again; nothing else may be without a gradient.
    assert not [key for key in dead if not key.endswith("bias")]


def test_same_seed_same_weights(name: str) -> None:
    one, two = made(name, 3, 2, seed=1), made(name, 3, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

"""FNN; the numbers are calculated by hand from eq. 1 to 3."""

from __future__ import annotations

import math

import pytest
import torch

from training.backbones.fnn import Options, build


def test_hidden_units_are_tanh_of_tanh_and_there_is_no_direct_logit() -> None:
    backbone = build(Options(hidden=(1, 1)), 1, 1, 1).eval()
    values = [0.5, -0.25, 2.0, 1.5, 0.1]  # tanh(.5 request - .25 + 2 item), then tanh(1.5 x + .1)
    with torch.no_grad():
        for parameter, value in zip(backbone.parameters(), values, strict=True):
            parameter.fill_(value)
    hidden, logit = backbone(torch.tensor([[[1.0]]]), torch.tensor([[[0.1]], [[-0.4]]]))
    expected = [math.tanh(1.5 * math.tanh(inside) + 0.1) for inside in (0.45, -0.55)]
    assert hidden[:, 0].tolist() == pytest.approx(expected)
    assert logit.tolist() == [0, 0]


def test_dropout_is_behind_every_layer() -> None:
    torch.manual_seed(0)
    backbone = build(Options(hidden=(50, 50), dropout=0.5), 2, 2, 4).train()
    hidden, _ = backbone(torch.randn(200, 2, 4), torch.randn(200, 2, 4))
    assert (hidden == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (backbone.eval()(torch.randn(9, 2, 4), torch.randn(9, 2, 4)).hidden != 0).all()

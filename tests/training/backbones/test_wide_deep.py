"""Wide & Deep's MLP; the numbers are calculated by hand."""

from __future__ import annotations

import pytest
import torch

from training.backbones.wide_deep import Options, build


@pytest.mark.parametrize(("request_value", "expected"), [(1.0, 2.0), (3.0, 0.0)])
def test_hidden_units_are_the_mlps_and_there_is_no_direct_logit(
    request_value: float, expected: float
) -> None:
    backbone = build(Options(hidden=(1, 1), norm="none", dropout=0), 1, 1, 1)
    values = [-2.0, 1.0, 3.0, 1.0, -1.0]  # relu(-2 request + 1 + 3 item), then relu(1 x - 1)
    with torch.no_grad():
        for parameter, value in zip(backbone.parameters(), values, strict=True):
            parameter.fill_(value)
    hidden, logit = backbone(torch.full((1, 1, 1), request_value), torch.tensor([[[4 / 3]], [[1.0]]]))
    assert hidden[0].item() == pytest.approx(
        expected
    )  # relu(relu(-2 + 1 + 4) - 1), relu(relu(-6 + 1 + 4) - 1)
    assert logit.tolist() == [0, 0]


def test_layers_have_batch_norm_unless_told_otherwise() -> None:
    assert any(isinstance(each, torch.nn.BatchNorm1d) for each in build(Options(), 1, 1, 4).modules())

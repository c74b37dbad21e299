"""AutoInt's attention against eq. 5 to 8: by hand, and as loops in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.backbones.autoint import Attention, Options, build


def test_one_head_of_one_unit_by_hand() -> None:
    attention = Attention(1, 1, 1)
    with torch.no_grad():
        attention.project.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [-0.5]]))  # Q, K, V, R
    found = attention.of_both(torch.tensor([[[1.0]]]), torch.tensor([[[-1.0]]]))[0, :, 0]
    # field 1: scores 2 and -2, values 3 and -3; field 2: scores -2 and 2, so the mean is negated
    mean = 3 * (math.exp(2) - math.exp(-2)) / (math.exp(2) + math.exp(-2))
    assert found.tolist() == pytest.approx([mean - 0.5, 0])  # ReLU of -mean + .5


def by_loops(attention: Attention, fields: np.ndarray) -> np.ndarray:
    """(F, width) to (F, heads * units)."""
    heads, units = attention.shape
    query, key, value, residual = np.split(attention.project.weight.detach().numpy(), 4)
    rows = []
    for m in range(len(fields)):
        of_heads = []
        for h in range(heads):
            part = slice(h * units, (h + 1) * units)
            score = np.array([(query[part] @ fields[m]) @ (key[part] @ each) for each in fields])
            weight = np.exp(score) / np.exp(score).sum()
            of_heads.append(sum(w * (value[part] @ each) for w, each in zip(weight, fields, strict=True)))
        rows.append(np.maximum(np.concatenate(of_heads) + residual @ fields[m], 0))
    return np.stack(rows)


@pytest.mark.parametrize("hidden", [(), (5, 3)])
@pytest.mark.parametrize("layers", [1, 3])
def test_attended_fields_are_the_papers_and_the_mlp_stands_beside(
    layers: int, hidden: tuple[int, ...]
) -> None:
    torch.manual_seed(layers)
    backbone = build(Options(layers=layers, heads=2, units=3, hidden=hidden), 2, 3, 4).eval()
    request, item = torch.randn(1, 2, 4), torch.randn(6, 3, 4)
    found, logit = backbone(request, item)
    assert found.shape == (6, backbone.width)
    assert backbone.width == 5 * 6 + sum(hidden[-1:])
    assert not logit.any()
    torch.testing.assert_close(backbone(request.expand(6, -1, -1), item).hidden, found)
    for row, result in zip(item.numpy(), found.detach().numpy(), strict=True):
        fields = np.concatenate([request[0].numpy(), row])
        for attention in (backbone.first, *backbone.rest):
            fields = by_loops(attention, fields)
        np.testing.assert_allclose(result[:30], fields.ravel(), rtol=1e-4, atol=1e-5)
    if backbone.mlp is not None:
        assert torch.equal(found[:, 30:], backbone.mlp(request.flatten(1), item.flatten(1)))


def test_large_scores_do_not_overflow() -> None:
    """Exponentials of them would; what is left is the value of the one field with the highest score."""
    attention = Attention(4, 2, 3)
    request, item = torch.randn(1, 2, 4) * 1e3, torch.randn(6, 3, 4) * 1e3
    one = attention.of_both(request, item)
    assert one.isfinite().all()
    whole = attention(torch.cat([request.expand(6, -1, -1), item], 1))
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-2)

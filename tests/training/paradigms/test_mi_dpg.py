"""Against the formula, with every row's weights written out, and InfoNCE by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.paradigms.making import GENERAL, make, shared_part, stir
from training.data.batches import Rows
from training.paradigms._modulated import OfDomain, OfRows
from training.paradigms.mi_dpg import Weighted, info_nce


def mi_dpg(root: Path, beta: float = 0.5) -> tuple[Any, Rows]:
    paradigm, rows = make("mi_dpg", root, hidden=[6, 5], rank=3, beta=beta)
    stir(paradigm)
    return paradigm, rows


def test_logit_is_the_ranker_and_the_network_of_modulated_weights(data_root: Path) -> None:
    paradigm, rows = mi_dpg(data_root)
    body = paradigm.body
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        hidden, direct = body.backbone(request, item)
        ranker = first_order + direct + body.head(hidden)[:, 0]
        for row in (0, 70, 190):
            x: Tensor = torch.cat([request[row].flatten(), item[row].flatten()])
            given = paradigm.own(int(rows.domain[row]))
            for layer, own in zip(body.layers, given, strict=True):
                factor = 1 + layer.left @ own.matrix @ layer.right
                x = (x @ (layer.weight * factor) + own.bias).clamp(min=0)
            expected = ranker[row] + body.out(x)[0]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_without_a_matrix_a_layer_is_the_shared_one() -> None:
    layer = Weighted((4, 3), 5, rank=2)
    request, item = torch.randn(6, 4), torch.randn(6, 3)
    expected = torch.cat([request, item], 1) @ layer.weight
    for given in (
        OfDomain(torch.zeros(2, 2), torch.zeros(5)),
        OfRows(torch.zeros(6, 2, 2), torch.zeros(6, 5)),
    ):
        torch.testing.assert_close(layer([request, item], given), expected)


def test_weights_start_near_the_shared_ones(data_root: Path) -> None:
    paradigm, _ = make("mi_dpg", data_root)
    for layer, own in zip(paradigm.body.layers, paradigm.own(0), strict=True):
        assert (layer.left @ own.matrix @ layer.right).abs().mean() < 0.3


def test_info_nce_by_hand() -> None:
    """Cosines 1, 0 / 0.6, 0.8 at temperature 0.5."""
    one, other = torch.tensor([[2.0, 0.0], [3.0, 4.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(0)))
    second = -math.log(math.exp(1.6) / (math.exp(1.2) + math.exp(1.6)))
    assert info_nce(one, other, 0.5).item() == pytest.approx((first + second) / 2)


def test_where_domains_are_the_same_the_bound_says_nothing_and_it_is_learned(data_root: Path) -> None:
    """Log 3 of three domains: as bad as guessing."""
    paradigm, rows = make("mi_dpg", data_root, beta=1.0)
    apart = paradigm.condition.embedding.detach().clone()
    with torch.no_grad():
        paradigm.condition.embedding.copy_(apart[:1].expand_as(apart))
        assert paradigm.extra(rows).item() == pytest.approx(math.log(3), abs=1e-5)
        paradigm.condition.embedding.copy_(apart)
    optimiser = torch.optim.Adam(paradigm.condition.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        optimiser.zero_grad()
        loss = paradigm.extra(rows)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_extra_is_over_the_domains_of_the_batch_and_the_general_one_is_none(data_root: Path) -> None:
    paradigm, rows = mi_dpg(data_root)
    two = rows.of(0).joined(rows.of(2))
    found, again = paradigm.extra(two), paradigm.extra(two.joined(rows.under(GENERAL)))
    assert found is not None
    assert again is not None
    torch.testing.assert_close(found, again)
    found.backward()
    gradient = paradigm.condition.embedding.grad
    assert gradient is not None
    assert gradient.any(1).tolist() == [True, False, True, False]
    assert paradigm.extra(rows.of(0)) is None
    assert mi_dpg(data_root, beta=0.0)[0].extra(rows) is None


def test_a_domain_owns_its_matrices_and_biases(data_root: Path) -> None:
    """Layers of 6 and 5 at rank 3: 9 + 6 + 9 + 5 = 29 floats."""
    paradigm, _ = mi_dpg(data_root)
    assert {name: tensor.shape for name, tensor in paradigm.pack(0).items()} == {
        "own.0.matrix": (3, 3),
        "own.0.bias": (6,),
        "own.1.matrix": (3, 3),
        "own.1.bias": (5,),
    }

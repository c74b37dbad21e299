"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.training.paradigms.making import DOMAINS, dense, make, shared_part, stir


def leaky(x: Tensor) -> Tensor:
    return x.clamp(min=0) + 0.01 * x.clamp(max=0)


def attention(paradigm: Any, own: Any, outputs: Tensor) -> Tensor:
    """Of one row: the shares of what experts found (E, H)."""
    unit = own[0]
    v = paradigm.body.attend.weight[0]
    scores = torch.stack([v @ leaky(unit.matrix.T @ output + unit.bias) for output in outputs])
    shares: Tensor = scores.exp() / scores.exp().sum()
    return shares


def test_logit_is_the_tower_over_units_that_the_domain_gives(data_root: Path) -> None:
    paradigm, rows = make("m2m", data_root, experts=3, units=2)
    stir(paradigm)
    body = paradigm.body
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        for row in (0, 70, 190):
            own = paradigm.own(int(rows.domain[row]))
            outputs = [expert(request[row : row + 1], item[row : row + 1]) for expert in body.experts.each]
            hidden = torch.stack([each.hidden[0] for each in outputs])
            shares = attention(paradigm, own, hidden)
            h = shares @ hidden
            direct = shares @ torch.stack([each.logit[0] for each in outputs])
            for unit in own[1:]:
                h = leaky(unit.matrix.T @ h + unit.bias + h)
            expected = first_order[row] + dense(h, body.tower)[0] + direct
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_experts_start_alike_and_units_hardly_change_anything(data_root: Path) -> None:
    paradigm, rows = make("m2m", data_root)
    _, request, item = shared_part(paradigm, rows)
    with torch.inference_mode():
        hidden = torch.stack([each(request, item).hidden for each in paradigm.body.experts.each], 1)
        for domain in range(DOMAINS + 1):
            own = paradigm.own(domain)
            shares = torch.stack([attention(paradigm, own, row) for row in hidden])
            assert (shares - 0.25).abs().max() < 0.05
            assert own[1].matrix.abs().mean() < 0.3
            assert not own[1].bias.any()


def test_a_domain_owns_weights_and_biases_of_its_units(data_root: Path) -> None:
    """Of 4 hidden units: 2 * (16 + 4) = 40 floats."""
    paradigm, _ = make("m2m", data_root)
    assert {name: tensor.shape for name, tensor in paradigm.pack(0).items()} == {
        "own.0.matrix": (4, 4),
        "own.0.bias": (4,),
        "own.1.matrix": (4, 4),
        "own.1.bias": (4,),
    }

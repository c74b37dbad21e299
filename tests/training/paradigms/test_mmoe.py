"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.paradigms.making import DOMAINS, dense, make, shared_part, stir
from training.nn.experts import Mixture


def mixture_of(paradigm: Any, domain: int) -> Mixture:
    found: Mixture = paradigm.own(domain)["mixture"]
    return found


def test_logit_is_the_tower_over_the_experts_under_the_domains_gate(data_root: Path) -> None:
    paradigm, rows = make("mmoe", data_root, experts=3)
    stir(paradigm)
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        experts = [expert(request, item) for expert in paradigm.body.experts.each]
        for row in (0, 70, 190):
            own = mixture_of(paradigm, int(rows.domain[row]))
            weight = torch.cat([own.gate.request.weight, own.gate.item.weight], 1)
            x = torch.cat([request[row].flatten(), item[row].flatten()])
            gate = (weight @ x + own.gate.request.bias).exp()
            gate /= gate.sum()
            hidden = sum(float(share) * each.hidden[row] for share, each in zip(gate, experts, strict=True))
            direct = sum(float(share) * each.logit[row] for share, each in zip(gate, experts, strict=True))
            assert isinstance(hidden, torch.Tensor)
            torch.testing.assert_close(found[row], first_order[row] + dense(hidden, own.tower)[0] + direct)
            # An FM has no parameters: mixed by a gate, it is still the FM.
            assert float(direct) == pytest.approx(float(experts[0].logit[row]), abs=1e-4)


def test_each_domain_has_a_gate_of_its_own_that_starts_near_uniform(data_root: Path) -> None:
    """The slip of published code, one gate for all domains, would make all four equal."""
    paradigm, rows = make("mmoe", data_root)
    _, request, item = shared_part(paradigm, rows)
    with torch.no_grad():
        flat = request.flatten(1), item.flatten(1)
        gates = [mixture_of(paradigm, at).gate(*flat).softmax(1) for at in range(DOMAINS + 1)]
        assert all((gate - 0.25).abs().max() < 0.02 for gate in gates)
        stir(paradigm)
        gates = [mixture_of(paradigm, at).gate(*flat).softmax(1) for at in range(DOMAINS + 1)]
    assert len({round(float(gate.std()), 6) for gate in gates}) == DOMAINS + 1


def test_a_domain_owns_its_gate_and_its_tower(data_root: Path) -> None:
    """Gate: E * dim X + E; tower over 4 hidden units: 97."""
    paradigm, rows = make("mmoe", data_root, experts=3)
    _, request, item = shared_part(paradigm, rows)
    width = request[0].numel() + item[0].numel()
    assert sum(tensor.numel() for tensor in paradigm.pack(0).values()) == 3 * width + 3 + 97

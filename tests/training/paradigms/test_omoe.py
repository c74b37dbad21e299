"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.paradigms.making import dense, make, shared_part, stir


def test_logit_is_the_domains_tower_over_the_experts_under_one_gate(data_root: Path) -> None:
    paradigm, rows = make("omoe", data_root, experts=3)
    stir(paradigm)
    body = paradigm.body
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        experts = [expert(request, item) for expert in body.experts.each]
        weight = torch.cat([body.gate.request.weight, body.gate.item.weight], 1)
        for row in (0, 70, 190):
            x = torch.cat([request[row].flatten(), item[row].flatten()])
            gate = (weight @ x + body.gate.request.bias).exp()
            gate /= gate.sum()
            hidden = sum(share * each.hidden[row] for share, each in zip(gate, experts, strict=True))
            direct = sum(share * each.logit[row] for share, each in zip(gate, experts, strict=True))
            assert isinstance(hidden, torch.Tensor)
            tower = paradigm.own(int(rows.domain[row]))["tower"]
            torch.testing.assert_close(found[row], first_order[row] + dense(hidden, tower)[0] + direct)


def test_a_domain_owns_its_tower_alone(data_root: Path) -> None:
    """Over 4 hidden units: 4 * 16 + 16 + 16 + 1 = 97 floats."""
    paradigm, _ = make("omoe", data_root)
    assert {name.split(".")[1] for name in paradigm.owned} == {"tower"}
    assert sum(tensor.numel() for tensor in paradigm.pack(0).values()) == 97

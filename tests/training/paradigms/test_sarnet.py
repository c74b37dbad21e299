"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.paradigms.making import DOMAINS, dense, make, shared_part, stir


def test_experts_and_gate_see_the_fields_as_the_domain_scales_and_shifts_them(data_root: Path) -> None:
    paradigm, rows = make("sarnet", data_root, shared_experts=2, own_experts=1)
    stir(paradigm)
    body = paradigm.body
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, *fields = shared_part(paradigm, rows)
        for row in (0, 70, 190):
            own = paradigm.own(int(rows.domain[row]))
            x = []
            for scope, part in zip(("request", "item"), fields, strict=True):
                w, b = 1 + own.get_parameter(f"{scope}.scale"), own.get_parameter(f"{scope}.shift")
                x.append((part[row] * w + b)[None])
            experts = [*body.experts.each, *own["experts"].each]
            outputs = [expert(*x) for expert in experts]
            gate = body.mixture.gate
            weight = torch.cat([gate.request.weight, gate.item.weight], 1)
            shares = torch.softmax(
                weight @ torch.cat([each.flatten() for each in x]) + gate.request.bias,
                0,
            )
            hidden = sum(s * out.hidden[0] for s, out in zip(shares, outputs, strict=True))
            direct = sum(s * out.logit[0] for s, out in zip(shares, outputs, strict=True))
            assert isinstance(hidden, torch.Tensor)
            tower = body.get_submodule("mixture.tower")
            expected = first_order[row] + dense(hidden, tower)[0] + direct
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_fields_are_as_they_are_at_the_start(data_root: Path) -> None:
    paradigm, rows = make("sarnet", data_root)
    _, request, item = shared_part(paradigm, rows)
    for domain in range(DOMAINS + 1):
        own = paradigm.own(domain)
        assert torch.equal(own["request"](request), request)
        assert torch.equal(own["item"](item), item)


def test_a_domain_owns_transform_and_experts_and_neither_gate_nor_tower(data_root: Path) -> None:
    paradigm, _ = make("sarnet", data_root)
    assert {name.split(".")[1] for name in paradigm.owned} == {"request", "item", "experts"}

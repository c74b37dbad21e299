"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.paradigms.making import DOMAINS, GENERAL, dense, make, shared_part, stir


def test_shared_and_domains_experts_are_fused_at_two_levels(data_root: Path) -> None:
    paradigm, rows = make("m3oe", data_root, shared_experts=2)
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
            fusion = own["fusion"]
            weight = torch.cat([fusion.gate.request.weight, fusion.gate.item.weight], 1)
            gate = (weight @ torch.cat([each.flatten() for each in x]) + fusion.gate.request.bias).exp()
            special, share = fusion.experts.exp(), 1 / (1 + torch.exp(-fusion.groups))
            # The experts' weights in the end, which sum to 1: both levels multiplied out.
            weights = torch.cat([(1 - share) * gate / gate.sum(), share * special / special.sum()])
            torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
            outputs = [expert(*x) for expert in (*body.shared.each, *body.special.each)]
            hidden = weights @ torch.stack([each.hidden[0] for each in outputs])
            direct = weights @ torch.stack([each.logit[0] for each in outputs])
            expected = first_order[row] + dense(hidden, fusion.tower)[0] + direct
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_domain_starts_with_half_of_its_own_expert_and_the_general_one_with_all_alike(
    data_root: Path,
) -> None:
    paradigm, _ = make("m3oe", data_root)
    for domain in range(DOMAINS):
        shares = paradigm.own(domain)["fusion"].experts.softmax(0)
        expected = torch.full((DOMAINS,), 0.25).index_fill(0, torch.tensor(domain), 0.5)
        torch.testing.assert_close(shares, expected)
    torch.testing.assert_close(paradigm.own(GENERAL)["fusion"].experts.softmax(0), torch.full((3,), 1 / 3))


def test_a_domain_owns_transform_weights_gate_and_tower_and_no_expert(data_root: Path) -> None:
    """Transform: 2 * dim X; gate: 4 * dim X + 4; weights: 3 + 1; tower over 4 hidden units: 97."""
    paradigm, rows = make("m3oe", data_root)
    _, request, item = shared_part(paradigm, rows)
    width = request[0].numel() + item[0].numel()
    assert sum(tensor.numel() for tensor in paradigm.pack(0).values()) == 6 * width + 4 + 3 + 1 + 97

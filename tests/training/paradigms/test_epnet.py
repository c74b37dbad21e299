"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.paradigms.making import DOMAINS, make, shared_part, stir


def gates(paradigm: Any, seen: Tensor) -> Tensor:
    """Of one row: 2 sigmoid(W' relu(W v + b) + b')."""
    first, second = paradigm.body.gate.first, paradigm.body.gate.second
    parts = [first.request, first.item] if paradigm.body.reads_item else [first]
    weight = torch.cat([part.weight for part in parts], 1)
    inner = (weight @ seen + parts[0].bias).clamp(min=0)
    factor: Tensor = 2 / (1 + torch.exp(-(second.weight @ inner + second.bias)))
    return factor


@pytest.mark.parametrize("reads", ["all", "request"])
def test_the_backbone_reads_fields_that_the_domains_gate_scales(reads: str, data_root: Path) -> None:
    paradigm, rows = make("epnet", data_root, reads=reads)
    stir(paradigm)
    body = paradigm.body
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        for row in (0, 70, 190):
            (prompt,) = paradigm.own(int(rows.domain[row]))["prompt"].row
            x = [request[row].flatten(), item[row].flatten()]
            factor = gates(paradigm, torch.cat([prompt, *(x if reads == "all" else x[:1])]))
            scaled = factor * torch.cat(x)
            of_request = scaled[: len(x[0])].view(1, *request.shape[1:])
            hidden, direct = body.backbone(of_request, scaled[len(x[0]) :].view(1, *item.shape[1:]))
            expected = first_order[row] + direct[0] + body.head(hidden)[0, 0]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_fields_learn_nothing_through_the_gate(data_root: Path) -> None:
    paradigm, rows = make("epnet", data_root)
    stir(paradigm)
    body, own = paradigm.body, paradigm.own(0)
    _, request, item = (part.detach().requires_grad_() for part in shared_part(paradigm, rows))
    found = torch.autograd.grad(body.interact(request, item, own).sum(), [request, item])
    seen = torch.cat([own["prompt"](request), request.flatten(1), item.flatten(1)], 1).detach()
    factor = torch.stack([gates(paradigm, row) for row in seen]).detach()
    of_request, of_item = factor.split([request[0].numel(), item[0].numel()], 1)
    hidden, direct = body.backbone(of_request.view(request.shape) * request, of_item.view(item.shape) * item)
    expected = torch.autograd.grad((direct + body.head(hidden)[:, 0]).sum(), [request, item])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gates_start_near_one_and_embeddings_apart(data_root: Path) -> None:
    paradigm, rows = make("epnet", data_root)
    _, request, item = shared_part(paradigm, rows)
    with torch.inference_mode():
        for domain in range(DOMAINS + 1):
            seen = torch.cat([paradigm.own(domain)["prompt"](request), request.flatten(1)], 1)
            assert (paradigm.body.gate(seen, item.flatten(1)) - 1).abs().max() < 0.05
    assert len({round(float(paradigm.pack(at)["own.prompt.row"].sum()), 6) for at in range(DOMAINS)}) == 3


@pytest.mark.parametrize(("reads", "rows_of_request"), [("all", 64), ("request", 1)])
def test_a_gate_over_the_request_is_computed_once_a_request(
    reads: str, rows_of_request: int, data_root: Path
) -> None:
    paradigm, rows = make("epnet", data_root, reads=reads)
    servable, seen = paradigm.servable().eval(), []
    servable.body.backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.inference_mode():
        servable(*(tensor[:1] for tensor in rows.arrays[:2]), *(tensor[:64] for tensor in rows.arrays[2:]))
    assert seen == [rows_of_request]


def test_a_domain_owns_its_embedding(data_root: Path) -> None:
    paradigm, _ = make("epnet", data_root)
    assert {name: tensor.shape for name, tensor in paradigm.pack(0).items()} == {"own.prompt.row": (1, 8)}

"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.contract.errors import RunError
from tests.training.paradigms.making import dense, make, shared_part, stir


def test_the_gate_is_a_softmax_over_shared_and_own_experts(data_root: Path) -> None:
    paradigm, rows = make("ple", data_root, shared_experts=2, own_experts=3)
    stir(paradigm)
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        for row in (0, 70, 190):
            own = paradigm.own(int(rows.domain[row]))["extraction"]
            of_row = request[row : row + 1], item[row : row + 1]
            experts = [*paradigm.body.experts.each, *own.experts.each]
            outputs = [expert(*of_row) for expert in experts]
            gate = own.mixture.gate
            weight = torch.cat([gate.request.weight, gate.item.weight], 1)
            shares = weight @ torch.cat([each.flatten() for each in of_row]) + gate.request.bias
            shares = shares.exp() / shares.exp().sum()
            assert len(shares) == 5
            hidden = sum(s * out.hidden[0] for s, out in zip(shares, outputs, strict=True))
            direct = sum(s * out.logit[0] for s, out in zip(shares, outputs, strict=True))
            assert isinstance(hidden, torch.Tensor)
            expected = first_order[row] + dense(hidden, own.mixture.tower)[0] + direct
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_own_experts_are_not_each_others_copies_and_keep_their_own_statistics(data_root: Path) -> None:
    paradigm, rows = make("ple", data_root)
    one, two = (paradigm.pack(0)[f"own.extraction.experts.each.{at}.mlp.first.item.weight"] for at in (0, 1))
    assert not torch.equal(one, two)
    before = {name: tensor.clone() for name, tensor in paradigm.state_dict().items()}
    paradigm.train()(rows.of(0))
    moved = {name for name, tensor in paradigm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("domains.0.") for name in moved)
    assert not any(name.startswith(("domains.1.", "domains.2.", "domains.3.")) for name in moved)


def test_there_is_one_level(data_root: Path) -> None:
    with pytest.raises(RunError, match="levels"):
        make("ple", data_root, levels=2)

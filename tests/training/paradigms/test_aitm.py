"""Against the paper's equations, written out row by row, and one by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.contract.errors import RunError
from tests.training.paradigms.making import DOMAINS, GENERAL, dense, make, shared_part, stir
from training.paradigms.aitm import Transfer


def linear(layer: Any, x: Tensor) -> Tensor:
    found: Tensor = layer.weight @ x + layer.bias
    return found


def chained(chain: Any, until: int, request: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """z of a place, hidden units and direct logit, of one row."""
    (hidden,), (direct,) = chain.bottoms.each[until](request, item)
    if not until:
        return hidden, direct
    before, direct_before = chained(chain, until - 1, request, item)
    ait = chain.transfer
    both = [linear(chain.hand_on[until - 1], before), hidden]
    scores = [float(linear(ait.h2, u) @ linear(ait.h3, u)) / math.sqrt(len(u)) for u in both]
    total = sum(math.exp(score) for score in scores)
    one, other = (math.exp(score) / total for score in scores)
    z = one * linear(ait.h1, both[0]) + other * linear(ait.h1, both[1])
    return z, one * direct_before + other * direct


@pytest.mark.parametrize("order", [[], [2, 0, 1]])
def test_logit_is_the_tower_over_the_domains_place_in_the_chain(order: list[int], data_root: Path) -> None:
    paradigm, rows = make("aitm", data_root, order=order)
    stir(paradigm)
    both = rows.joined(rows[:8].under(GENERAL))
    with torch.inference_mode():
        found = paradigm(both)
        first_order, request, item = shared_part(paradigm, both)
        for row in (0, 70, 190, 195):
            domain = int(both.domain[row])
            place = ([*order] or [0, 1, 2]).index(domain) if domain < DOMAINS else DOMAINS
            z, direct = chained(paradigm.body.chain, place, request[row : row + 1], item[row : row + 1])
            expected = first_order[row] + dense(z, paradigm.own(domain).tower)[0] + direct
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_transfer_by_hand() -> None:
    """One hidden unit and projections of 1: scores 4 and 1 of p = 2 and q = 1."""
    transfer = Transfer(1)
    with torch.no_grad():
        for layer in (transfer.h1, transfer.h2, transfer.h3):
            layer.weight.fill_(1)
            layer.bias.zero_()
        found = transfer(torch.tensor([[2.0, 10.0]]), torch.tensor([[1.0, 20.0]]))
    share = math.exp(4) / (math.exp(4) + math.exp(1))
    expected = torch.tensor([[2 * share + (1 - share), 10 * share + 20 * (1 - share)]])
    torch.testing.assert_close(found, expected)


def moved(data_root: Path, at: int) -> list[bool]:
    """Whether each domain's, and the general one's, logits move with a place's network."""
    paradigm, rows = make("aitm", data_root)
    stir(paradigm)

    def scores() -> list[Tensor]:
        return [paradigm(rows.under(domain)) for domain in range(DOMAINS + 1)]

    with torch.no_grad():
        before = scores()
        stir(paradigm.body.chain.bottoms.each[at])
        return [not torch.equal(*pair) for pair in zip(before, scores(), strict=True)]


def test_a_domain_reads_the_places_up_to_its_own(data_root: Path) -> None:
    assert moved(data_root, 0) == [True, True, True, True]
    assert moved(data_root, 1) == [False, True, True, True]
    assert moved(data_root, 3) == [False, False, False, True]


def test_rows_train_no_later_place(data_root: Path) -> None:
    """None at all, rather than zeros: Adam moves a parameter whose gradient is zero."""
    paradigm, rows = make("aitm", data_root)
    paradigm.train()(rows.of(0).joined(rows.of(1))).square().sum().backward()
    bottoms = paradigm.body.chain.bottoms.each
    trained = [any(p.grad is not None for p in bottom.parameters()) for bottom in bottoms]
    assert trained == [True, True, False, False]


def test_a_domain_owns_its_place_and_its_tower(data_root: Path) -> None:
    paradigm, _ = make("aitm", data_root, order=[2, 0, 1])
    assert {name.split(".")[1] for name in paradigm.owned} == {"place", "tower"}
    places = [paradigm.pack(domain)["own.place"].tolist() for domain in (0, 1, 2, None)]
    assert places == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_each_domain_has_one_place(order: list[int], data_root: Path) -> None:
    with pytest.raises(RunError, match="order has to have each of 0 to 2 once"):
        make("aitm", data_root, order=order)

"""What the paradigms of one stage promise alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from tests.training.paradigms.making import DOMAINS, GENERAL, make, stir
from training.loop import Loop
from training.recipe import Tuning
from training.tuning import tune, tuned_alone

ALIKE = ["shared_bottom", "omoe", "mmoe", "ple", "sarnet", "star"]
NEARLY = ["epnet"]
APART = ["aitm", "m3oe"]
ROUTED = ALIKE + NEARLY + APART
MODULATED = ["apg", "mi_dpg", "m2m"]


@pytest.mark.parametrize(
    ("name", "off"), [*((name, 1e-6) for name in ALIKE), *((name, 0.02) for name in NEARLY + MODULATED)]
)
def test_all_domains_start_as_the_general_one(name: str, off: float, data_root: Path) -> None:
    """To the rounding, where nothing is generated: matrices differ as the embeddings do, but hardly."""
    paradigm, rows = make(name, data_root)
    with torch.inference_mode():
        expected = paradigm(rows.under(GENERAL))
        for domain in range(DOMAINS):
            torch.testing.assert_close(paradigm(rows.under(domain)), expected, rtol=0, atol=off)


@pytest.mark.parametrize("name", ROUTED + MODULATED)
def test_then_each_has_its_own(name: str, data_root: Path) -> None:
    paradigm, rows = make(name, data_root)
    stir(paradigm)
    with torch.inference_mode():
        found = torch.stack([paradigm(rows.under(domain)) for domain in range(DOMAINS + 1)])
    assert ((found[:, None] - found[None]).abs().mean(-1) > 1e-4).sum() == DOMAINS * (DOMAINS + 1)


@pytest.mark.parametrize("name", ROUTED)
def test_rows_give_no_gradient_to_other_domains(name: str, data_root: Path) -> None:
    """None at all, rather than zeros: Adam moves a parameter whose gradient is zero."""
    paradigm, rows = make(name, data_root)
    stir(paradigm)
    domains = paradigm.points if name == "star" else paradigm.domains
    paradigm.train()
    present = rows.of(0).joined(rows.of(2))
    paradigm(present).square().sum().backward()
    for at, domain in enumerate(domains):
        gradients = [parameter.grad for parameter in domain.parameters()]
        if at in (0, 2):
            assert any(gradient is not None and gradient.any() for gradient in gradients)
        else:
            assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("name", MODULATED)
def test_rows_give_no_gradient_to_other_domains_embeddings(name: str, data_root: Path) -> None:
    paradigm, rows = make(name, data_root)
    paradigm.train()
    paradigm(rows.of(0).joined(rows.of(2))).square().sum().backward()
    gradient = paradigm.condition.embedding.grad
    assert gradient.any(1).tolist() == [True, False, True, False]


@pytest.mark.parametrize("name", ROUTED)
def test_rows_of_one_domain_alone_or_among_others_train_it_alike(name: str, data_root: Path) -> None:
    """With layer norms, as a BatchNorm of the shared body sees all rows of a batch."""
    paradigm, rows = make(name, data_root)
    stir(paradigm)
    domains = paradigm.points if name == "star" else paradigm.domains
    found = []
    for batch in (rows.of(1), rows.of(1).joined(rows.of(0))):
        paradigm.eval().zero_grad()
        (paradigm(batch) * (batch.domain == 1)).square().sum().backward()
        found.append([p.grad.clone() for p in domains[1].parameters() if p.grad is not None])
    for alone, among in zip(*found, strict=True):
        torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROUTED + MODULATED)
def test_order_of_rows_is_kept_and_a_domain_may_have_a_single_row_in_training(
    name: str, data_root: Path
) -> None:
    paradigm, rows = make(name, data_root)
    stir(paradigm)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(paradigm(rows[order]), paradigm(rows)[order], rtol=1e-4, atol=1e-5)
    paradigm.train()
    assert paradigm(rows[:65]).isfinite().all()  # 64 of the first domain, one of the second
    assert all(module.training for module in paradigm.modules()) or name in {"ple", "sarnet", "aitm"}


@pytest.mark.parametrize("name", ROUTED + MODULATED)
def test_one_request_row_gives_what_repeated_ones_do(name: str, data_root: Path) -> None:
    paradigm, rows = make(name, data_root)
    stir(paradigm)
    servable = paradigm.servable().eval()
    items, one = rows.arrays[2:], [tensor[:1] for tensor in rows.arrays[:2]]
    with torch.inference_mode():
        repeated = servable(*(tensor.expand(len(rows), -1) for tensor in one), *items)
        torch.testing.assert_close(servable(*one, *items), repeated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROUTED + MODULATED)
def test_a_new_domain_tunes_what_a_domain_owns_and_nothing_else(name: str, data_root: Path) -> None:
    paradigm, rows = make(name, data_root)
    servable = paradigm.servable()
    before = {key: tensor.clone() for key, tensor in servable.state_dict().items()}
    tune(
        servable,
        tuned_alone(paradigm, name),
        Tuning(epochs=2, batch=16, lr=1e-2),
        domain="anew",
        train=rows,
        valid=rows,
        loop=Loop(0, Progress(disable=True)),
    )
    moved = {key for key, tensor in servable.state_dict().items() if not torch.equal(tensor, before[key])}
    assert {key for key in moved if not key.endswith("num_batches_tracked")} <= paradigm.owned
    parameters = {key for key, _ in servable.named_parameters()}
    assert tuned_alone(paradigm, name) == paradigm.owned & parameters

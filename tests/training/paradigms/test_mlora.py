"""Against a plain ranker whose weights are W + B A, multiplied out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from tests.training.paradigms.making import DOMAINS, GENERAL, make, stir
from training.loop import Loop
from training.model import logits
from training.paradigms.mlora import Adapted
from training.recipe import Tuning
from training.tuning import tune, tuned_alone


def merged(module: nn.Module) -> Any:
    """A copy with plain layers: W + B A, and b + b_d."""
    plain = copy.deepcopy(module)
    for name, layer in module.named_modules():
        if isinstance(layer, Adapted):
            other = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            with torch.no_grad():
                other.weight.copy_(layer.weight + layer.addition.B @ layer.addition.A)
                if layer.bias is not None:
                    assert layer.addition.bias is not None
                    other.bias.copy_(layer.bias + layer.addition.bias)
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, other)
    return plain


def test_every_layer_is_one_of_weights_with_a_product_added(data_root: Path) -> None:
    paradigm, rows = make("mlora", data_root, rank=2)
    stir(paradigm)
    servable = paradigm.servable().eval()
    plain = merged(servable)
    linear = [layer for layer in servable.modules() if isinstance(layer, nn.Linear)]
    assert [type(layer) for layer in linear] == [Adapted] * 4  # two halves of the first, another, the head
    assert not any(isinstance(layer, Adapted) for layer in plain.modules())
    with torch.inference_mode():
        torch.testing.assert_close(servable(*rows.arrays), plain(*rows.arrays), rtol=1e-4, atol=1e-4)


def test_all_domains_start_as_the_common_model(data_root: Path) -> None:
    paradigm, rows = make("mlora", data_root)
    with torch.inference_mode():
        expected = paradigm(rows.under(GENERAL))
        for domain in (*range(DOMAINS), None):
            pack = paradigm.pack(domain)
            assert not any(tensor.any() for name, tensor in pack.items() if not name.endswith(".A"))
            assert torch.equal(logits(paradigm.servable(), pack, rows), expected)


def test_the_first_stage_trains_what_is_common_and_the_second_what_is_added(data_root: Path) -> None:
    paradigm, _ = make("mlora", data_root)
    joint, tuning = paradigm.stages()
    assert joint.trains | {f"general.{name}" for name in tuning.trains} == {
        name for name, _ in paradigm.named_parameters()
    }
    assert not any(".addition." in name for name in joint.trains)
    assert tuning.trains == paradigm.owned


def test_a_new_domain_tunes_its_additions_and_nothing_else(data_root: Path) -> None:
    paradigm, rows = make("mlora", data_root)
    servable = paradigm.servable()
    before = {key: tensor.clone() for key, tensor in servable.state_dict().items()}
    tune(
        servable,
        tuned_alone(paradigm, "mlora"),
        Tuning(epochs=2, batch=16, lr=1e-2),
        domain="anew",
        train=rows,
        valid=rows,
        loop=Loop(0, Progress(disable=True)),
    )
    after = servable.state_dict()
    assert {key for key in before if not torch.equal(after[key], before[key])} == paradigm.owned


def test_a_domain_owns_its_products_and_biases(data_root: Path) -> None:
    """Layers of 8 and 4 units and the head: each r (N + M), and M where there is a bias; r is 4, or M."""
    paradigm, rows = make("mlora", data_root)
    request, item = paradigm.general.embedding(*rows.arrays)
    first = 4 * (request[0].numel() + 8) + 8 + 4 * (item[0].numel() + 8)
    second, head = 4 * (8 + 4) + 4, 1 * (4 + 1) + 1
    assert sum(tensor.numel() for tensor in paradigm.pack(0).values()) == first + second + head

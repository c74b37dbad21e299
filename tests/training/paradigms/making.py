"""A paradigm over the tiny recipe's fields, untrained, and rows of its domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.conftest import TINY
from training.data.batches import Rows
from training.data.prepare import prepare
from training.model import build
from training.recipe import Recipe

DOMAINS = 3
GENERAL = DOMAINS


def make(name: str, root: Path, seed: int = 3, **options: Any) -> tuple[Any, Rows]:
    """In eval mode, with 64 rows of each domain."""
    recipe = Recipe.model_validate({**TINY, "seed": seed, "paradigm": {"name": name, **options}})
    prepared = prepare(recipe.data.name, recipe.data.options, root)
    paradigm = build(recipe, prepared.schema, prepared.domains).paradigm
    rows = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
    one, two, three = (rows.of(at)[:64] for at in range(DOMAINS))
    return paradigm, one.joined(two).joined(three)


def stir(module: nn.Module) -> None:
    """Add noise to every parameter, so that no term of a formula is zero or one by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def shared_part(paradigm: Any, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """The first-order part (B,), and the fields (B, F_q, K) and (B, F_i, K)."""
    body = paradigm.body
    return body.first_order(*rows.arrays), *body.embedding(*rows.arrays)


def dense(x: Tensor, layers: nn.Module) -> Tensor:
    """Layers of `mlp`, written out: linear, ReLU, ..., linear."""
    linear = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    for layer in linear[:-1]:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    return x @ linear[-1].weight.T + linear[-1].bias

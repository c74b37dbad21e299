"""Torch against an engine, on the batches that break engines."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from export.packs import named, tensors
from service.contract.errors import BundleError
from service.contract.field import PAD, Scope
from service.contract.items import ItemTable
from service.contract.manifest import ITEM_ROWS, GraphInput, Parity
from service.contract.pack import DomainPack
from service.contract.schema import FeatureSchema, Inputs
from service.engines._protocol import Engine
from training.data.batches import Arrays
from training.model import Model

BUDGET = 1e-5
"""Largest difference in probability."""
_LARGE = ", numbers "
"""In the names of cases with numbers of a thousand deviations."""
_ROUNDING = 4
"""Times torch's own rounding that an engine may be off, where that is above the budget. Squares of numbers of
a thousand deviations cancel in float32, and another order of the same operations rounds otherwise."""
SIZES = (1, 2, 3, 7, 33, 255, 500, 1000)
"""Candidates: one, odd numbers, powers of two missed by one, many."""
_FEW = 64
"""Candidates, at most, for a paradigm that cannot score the most of them at a time: hundreds of prompts cost
a language model minutes and gigabytes."""


def cases(schema: FeatureSchema, seed: int = 0) -> Iterator[tuple[str, Arrays]]:
    """Requests and candidates: random rows, nothing known, the ends of every field's rows, large numbers."""
    rng = np.random.default_rng(seed)
    for size in SIZES:
        yield (
            f"random, {size}",
            tensors(_random(schema, "request", 1, rng), _random(schema, "item", size, rng)),
        )
    for size in (1, 9):
        request, item = schema.blanks["request"], schema.blanks["item"]
        yield f"nothing known, {size}", tensors(request, item.take(np.zeros(size, np.int64)))
    for scale in (-1e3, 1e3):
        request, item = (_ends(schema, scope, scale) for scope in ("request", "item"))
        yield f"first and last rows, numbers {scale:+g}", tensors(request.take(slice(0, 1)), item)
        yield f"last rows first, numbers {scale:+g}", tensors(request.take(slice(1, 2)), item)


def row_cases(
    schema: FeatureSchema, items: ItemTable, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int32], Arrays]]:
    """The same of candidates that are rows of the item table, and those rows."""
    rng = np.random.default_rng(seed)
    last = len(items)
    for size in SIZES:
        rows = rng.integers(0, last + 1, size, dtype=np.int32)
        yield f"rows, {size}", rows, tensors(_random(schema, "request", 1, rng), items.inputs.take(rows))
    for size in (1, 9):
        rows = np.zeros(size, np.int32)
        yield f"row 0, {size}", rows, tensors(schema.blanks["request"], items.inputs.take(rows))
    for scale in (-1e3, 1e3):
        rows = np.array([0, last], np.int32)
        request = _ends(schema, "request", scale).take(slice(1, 2))
        yield f"first and last row, numbers {scale:+g}", rows, tensors(request, items.inputs.take(rows))


def gate(
    model: Model,
    inputs: Sequence[GraphInput],
    packs: Iterable[DomainPack],
    engine: Engine,
    name: str,
    *,
    items: ItemTable | None = None,
    budget: float = BUDGET,
    large: bool = True,
) -> Parity:
    """Compare probabilities for every pack and case.

    Args:
        model: the trained model, in torch.
        inputs: the graph's.
        packs: what to compare under.
        engine: an engine that has the graph loaded.
        name: the engine's, as the manifest is to list it.
        items: give candidates as rows of this table, instead of by their fields.
        budget: the largest difference in probability.
        large: also with numbers of a thousand deviations, which are beyond what float16 can hold.

    Raises:
        BundleError: one of them is off by more than the budget; the text names it.
    """
    worst, rows, count, beyond = 0.0, 0, 0, 0
    servable = model.paradigm.servable().eval()
    most = max(SIZES) if model.paradigm.most_rows >= max(SIZES) else _FEW
    for pack in packs:
        handle = engine.load(pack)
        owned = {key: torch.from_numpy(np.array(value)) for key, value in pack.tensors.items()}
        for case, arrays, given in _given(model.schema, inputs, items):
            if len(arrays[2]) > most or (not large and _LARGE in case):
                continue
            with torch.inference_mode():
                expected = torch.func.functional_call(servable, owned, arrays)
            found = torch.from_numpy(np.array(engine.score(given, handle)))
            if found.shape != expected.shape or not torch.isfinite(found).all():
                raise BundleError(
                    f"parity: {name}, {pack.domain}, {case}: shape {tuple(found.shape)} or not finite"
                )
            off = float((found.double().sigmoid() - expected.double().sigmoid()).abs().max())
            if off > budget and off <= _ROUNDING * _rounding(servable, owned, arrays, expected):
                beyond += 1
                continue
            if off > budget:
                raise BundleError(
                    f"parity: {name}, {pack.domain}, {case}: off by {off:.2e}, more than {budget:g}"
                )
            worst, rows, count = max(worst, off), rows + len(found), count + 1
        engine.release(handle)
    return Parity(
        engine=name, cases=count, rows=rows, max_abs_diff=worst, budget=budget, beyond_float32=beyond
    )


def _rounding(
    servable: nn.Module, owned: Mapping[str, torch.Tensor], arrays: Arrays, logit: torch.Tensor
) -> float:
    """How far torch's own probabilities are from those of twice the precision."""
    double = copy.deepcopy(servable).double()
    pack = {name: tensor.double() for name, tensor in owned.items()}
    request_ids, request_numbers, item_ids, item_numbers = arrays
    with torch.inference_mode():
        exact = torch.func.functional_call(
            double, pack, (request_ids, request_numbers.double(), item_ids, item_numbers.double())
        )
    return float((logit.double().sigmoid() - exact.sigmoid()).abs().max())


def by_row(
    arrays: Arrays, rows: npt.NDArray[np.int32], inputs: Sequence[GraphInput]
) -> dict[str, npt.NDArray[Any]]:
    """The inputs of the graph over item tables, by name."""
    request = [spec for spec in inputs if spec.scope == "request"]
    return {**named(arrays, request), ITEM_ROWS: rows}


def _given(
    schema: FeatureSchema, inputs: Sequence[GraphInput], items: ItemTable | None
) -> Iterator[tuple[str, Arrays, dict[str, npt.NDArray[Any]]]]:
    if items is None:
        for case, arrays in cases(schema):
            yield case, arrays, named(arrays, inputs)
    else:
        for case, rows, arrays in row_cases(schema, items):
            yield case, arrays, by_row(arrays, rows, inputs)


def _random(schema: FeatureSchema, scope: Scope, n: int, rng: np.random.Generator) -> Inputs:
    inputs = schema.blanks[scope].take(np.zeros(n, np.int64))
    for slot in schema.scope(scope):
        if slot.field.numeric:
            inputs.numbers[:, slot.at] = rng.normal(size=(n, slot.field.width))
            continue
        ids = rng.integers(slot.offset, slot.offset + slot.field.rows, (n, slot.field.width), dtype=np.int32)
        if slot.field.multiple:
            lengths = rng.integers(0, slot.field.width + 1, (n, 1))
            ids[np.arange(slot.field.width) >= lengths] = PAD
        inputs.ids[:, slot.at] = ids
    return inputs


def _ends(schema: FeatureSchema, scope: Scope, number: float) -> Inputs:
    """Two rows: every field at its first row, and every field at its last."""
    inputs = schema.blanks[scope].take(np.zeros(2, np.int64))
    for slot in schema.scope(scope):
        if slot.field.numeric:
            inputs.numbers[:, slot.at] = number
        else:
            inputs.ids[0, slot.at] = slot.offset
            inputs.ids[1, slot.at] = slot.offset + slot.field.rows - 1
    return inputs

"""Domains' parameters as `DomainPack`s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from service.contract.manifest import GraphInput
from service.contract.pack import GENERAL, DomainPack, Golden
from service.contract.schema import FeatureSchema, Inputs
from training.data.batches import Arrays, Rows
from training.model import Model
from training.paradigms._protocol import Pack

_INDEX, _HALF = 4, 2
"""Bytes of a row's number, and of a float16."""
GOLDEN_ROWS = 8
"""Candidates of a pack's golden request; the last is an item of which nothing is known."""


def named(arrays: Arrays, inputs: Sequence[GraphInput]) -> dict[str, npt.NDArray[Any]]:
    """The graph's request and item inputs, by name."""
    names = ("request.ids", "request.numbers", "item.ids", "item.numbers")
    wanted = {spec.name for spec in inputs}
    return {name: tensor.numpy() for name, tensor in zip(names, arrays, strict=True) if name in wanted}


def tensors(request: Inputs, item: Inputs) -> Arrays:
    """Encoded arrays as a network takes them."""
    arrays = (request.ids, request.numbers, item.ids, item.numbers)
    one, two, three, four = (torch.from_numpy(np.array(array)) for array in arrays)
    return one, two, three, four


def golden_request(rows: Rows, schema: FeatureSchema) -> Arrays:
    """The first row's request, with the items of the first rows as its candidates.

    Without rows, a request of which nothing is known.
    """
    known = rows[: GOLDEN_ROWS - 1]
    blank, nobody = schema.blanks["item"], schema.blanks["request"]
    return (
        torch.cat([known.request_ids, torch.from_numpy(nobody.ids)])[:1],
        torch.cat([known.request_numbers, torch.from_numpy(nobody.numbers)])[:1],
        torch.cat([known.item_ids, torch.from_numpy(blank.ids)]),
        torch.cat([known.item_numbers, torch.from_numpy(blank.numbers)]),
    )


def rounded(pack: Pack, general: Pack) -> Pack:
    """A pack whose numbers are float16's, and so take half of the bytes; golden rows are scored under it.

    Rows that are the general pack's stay as they are where it takes fewer bytes to write the others alone.
    """
    found = {}
    for name, tensor in pack.items():
        half = tensor.half().float()
        if tensor.dim():
            differs = (tensor != general[name]).reshape(len(tensor), -1).any(1)
            if int(differs.sum()) * (_INDEX + half[0].numel() * _HALF) < half.numel() * _HALF:
                half = torch.where(differs.reshape(-1, *[1] * (tensor.dim() - 1)), half, tensor)
        found[name] = half
    return found


def domain_pack(
    model: Model,
    domain: str | None,
    bundle: str,
    inputs: Sequence[GraphInput],
    golden: Arrays,
    *,
    half: bool = False,
) -> DomainPack:
    """One domain's pack, or the general one's, with golden rows that torch scores here.

    Args:
        model: a trained model.
        domain: None for the general pack.
        bundle: the bundle's id.
        inputs: the graph's.
        golden: one request (1, ...) and its items (B, ...).
        half: round a domain's tensors to float16.
    """
    pack, servable = model.pack(domain), model.paradigm.servable()
    if half and domain is not None:
        pack = rounded(pack, model.pack(None))
    return pack_of(
        servable,
        pack,
        golden,
        domain=GENERAL if domain is None else domain,
        calibration=model.calibration[domain],
        bundle=bundle,
        inputs=inputs,
    )


def pack_of(
    servable: nn.Module,
    pack: Pack,
    golden: Arrays,
    *,
    domain: str,
    calibration: tuple[float, float],
    bundle: str,
    inputs: Sequence[GraphInput],
) -> DomainPack:
    """A pack out of its tensors, with golden rows that torch scores here.

    Args:
        servable: the one-domain form.
        pack: the domain's tensors in it.
        golden: one request (1, ...) and its items (B, ...).
        domain: whose it is.
        calibration: (a, b) of the served logit.
        bundle: the bundle's id.
        inputs: the graph's.
    """
    with torch.inference_mode():
        logit = torch.func.functional_call(servable.eval(), pack, golden)
    return DomainPack(
        bundle=bundle,
        domain=domain,
        tensors={name: tensor.numpy() for name, tensor in pack.items()},
        golden=Golden(named(golden, inputs), logit.numpy()),
        calibration=np.array(calibration, np.float32),
    )

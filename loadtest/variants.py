"""`Variants`: packs made by disturbing others, and what torch answers under them.

A benchmark needs hundreds of versions and thousands of domains whose scores differ and are known; training
them would measure something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.packs import GOLDEN_ROWS, named
from loadtest.sender import request
from loadtest.traffic import JSON
from service.contract.bundle import Bundle
from service.contract.pack import DomainPack, Golden
from training.data.batches import Arrays
from training.model import Model


@dataclass(frozen=True)
class Query:
    """One rank request, and what a network reads of it."""

    domain: str
    http: bytes
    arrays: Arrays


class Variants:
    """Of a model and the bundle that was exported from it."""

    def __init__(self, model: Model, bundle: Bundle) -> None:
        self._bundle, self._inputs = bundle, bundle.manifest.inputs
        self._servable = model.paradigm.servable().eval()
        self._general = {name: tensor.clone() for name, tensor in model.pack(None).items()}

    def pack(
        self, domain: str, seed: int, golden: Query, *, share: float = 1.0, half: bool = False
    ) -> DomainPack:
        """A pack of random distance from the general one.

        Args:
            domain: whose.
            seed: which of many.
            golden: what its golden rows are taken from.
            share: of the rows of tables as long as the vocabulary, so many differ from the general pack's.
            half: round it to float16.
        """
        random = np.random.default_rng([seed, *domain.encode()])
        tensors = {}
        for name, tensor in self._general.items():
            whole = tensor.numpy().copy()
            rows = np.arange(len(whole))
            if whole.ndim == 1 and len(whole) > 1000:
                rows = random.choice(len(whole), max(1, round(share * len(whole))), replace=False)
            whole[rows] += random.normal(0, 0.1, whole[rows].shape).astype(np.float32)
            tensors[name] = whole.astype(np.float16).astype(np.float32) if half else whole
        arrays = _first(golden.arrays, GOLDEN_ROWS)
        return DomainPack(
            self._bundle.manifest.bundle,
            domain,
            tensors,
            Golden(named(arrays, self._inputs), self.logits(tensors, arrays)),
        )

    def logits(self, tensors: Mapping[str, npt.NDArray[Any]], arrays: Arrays) -> npt.NDArray[np.float32]:
        """(B,) as torch computes them."""
        pack = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        with torch.inference_mode():
            logit: torch.Tensor = torch.func.functional_call(self._servable, pack, arrays)
        return np.asarray(logit.numpy())

    def probabilities(self, pack: DomainPack, arrays: Arrays) -> npt.NDArray[np.float64]:
        """(B,) as the service should answer them."""
        a, b = pack.calibration
        logit = a * self.logits(pack.tensors, arrays).astype(np.float64) + b
        return np.asarray(1 / (1 + np.exp(-logit)))

    def query(self, domain: str, row: Mapping[str, Any], ids: npt.NDArray[np.int64]) -> Query:
        """A request of one prepared row's user and context, for some items.

        Args:
            domain: whose route to take.
            row: values by `Field.key`.
            ids: of items in the bundle's table, or not.
        """
        schema, items = self._bundle.schema, self._bundle.items
        body: dict[str, Any] = {"user": {}, "context": {}, "ids": ids.tolist()}
        for slot in schema.scope("request"):
            owner, name = slot.field.key.split(".")
            body[owner][name] = row[slot.field.key]
        asked = schema.encode(
            "request", {slot.field.key: [row[slot.field.key]] for slot in schema.scope("request")}, 1
        )
        found = items.inputs.take(items.rows(ids))
        parts = (asked.ids, asked.numbers, found.ids, found.numbers)
        one, two, three, four = (torch.from_numpy(np.array(part)) for part in parts)
        data = json.dumps(body).encode()
        path = f"/v1/domains/{domain}/rank"
        return Query(domain, request("POST", path, data, JSON), (one, two, three, four))


def _first(arrays: Arrays, n: int) -> Arrays:
    request_ids, request_numbers, item_ids, item_numbers = arrays
    return request_ids, request_numbers, item_ids[:n], item_numbers[:n]

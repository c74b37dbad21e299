"""`ScopedModel`: a servable whose domain-owned tensors are inputs, and the list of those inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from service.contract.field import Scope
from service.contract.manifest import GraphInput
from service.contract.schema import FeatureSchema
from training.model import Model

REQUEST = ("request.ids", "request.numbers")
ITEM = ("item.ids", "item.numbers")


def graph_inputs(schema: FeatureSchema, model: Model) -> tuple[GraphInput, ...]:
    """What the graph reads, in order: the request's arrays, the items', the pack's tensors.

    A scope without numbers, or without ids, has no input for them.
    """
    inputs = []
    scopes: tuple[tuple[Scope, tuple[str, str], Literal[1, "B"]], ...] = (
        ("request", REQUEST, 1),
        ("item", ITEM, "B"),
    )
    dtypes: tuple[Literal["int32"], Literal["float32"]] = ("int32", "float32")
    for scope, names, rows in scopes:
        for name, width, dtype in zip(names, schema.widths(scope), dtypes, strict=True):
            if width:
                inputs.append(
                    GraphInput(name=name, dtype=dtype, shape=(rows, width), scope=scope, source="schema")
                )
    for name, tensor in sorted(model.pack(None).items()):
        shape = tuple(tensor.shape)
        inputs.append(
            GraphInput(name=f"pack.{name}", dtype="float32", shape=shape, scope="pack", source="pack")
        )
    return tuple(inputs)


class ScopedModel(nn.Module):
    """Takes the graph's inputs in order, gives logits (B,)."""

    def __init__(self, servable: nn.Module, inputs: Sequence[GraphInput]) -> None:
        super().__init__()
        self.servable = servable
        self.names = [spec.name for spec in inputs]
        self.owned = [spec.name.removeprefix("pack.") for spec in inputs if spec.scope == "pack"]

    def forward(self, *values: Tensor) -> Tensor:
        """The servable, with the pack's tensors in the place of its own."""
        given = dict(zip(self.names, values, strict=True))
        pack = {name: given[f"pack.{name}"] for name in self.owned}
        blank = {
            "request.ids": torch.zeros(1, 0, dtype=torch.int32),
            "request.numbers": torch.zeros(1, 0),
            "item.ids": torch.zeros(1, 0, dtype=torch.int32),
            "item.numbers": torch.zeros(1, 0),
        }
        arrays = tuple(given.get(name, blank[name]) for name in (*REQUEST, *ITEM))
        out: Tensor = torch.func.functional_call(self.servable, pack, arrays)
        return out

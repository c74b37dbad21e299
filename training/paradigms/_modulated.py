"""`Modulated`: paradigms in which a domain owns a small matrix for each layer, generated from its embedding.

A layer is given a matrix S_d (K, K) and a bias b_d (M,) by the domain; how it uses S_d is what the models
differ in. In training S_d and b_d are generated; what is shipped is what was generated, and tuning a domain
tunes that. In `Beside` they are the hidden layers of an MLP over the fields, beside the plain ranker with any
backbone: K is the rank, N and M are a layer's inputs and outputs. M2M has a network of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Annotated, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.interactions import flat, mlp
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body, Joint

Positive = Annotated[int, Field(ge=1)]


class Options(BaseModel):
    """The modulated network's shape, and its generator's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 32)
    rank: Positive = 8
    """K: S_d is (K, K)."""
    generator: tuple[Positive, ...] = (32,)
    """Hidden layers from a domain's embedding to its matrices and biases."""


class Modulation(Protocol):
    """What a layer is given: of one domain, (K, K) and (M,), or of each row, (B, K, K) and (B, M)."""

    @property
    def matrix(self) -> Tensor:
        """S_d."""
        ...

    @property
    def bias(self) -> Tensor:
        """b_d."""
        ...


class OfRows(NamedTuple):
    """Of each row, or of each domain: (n, K, K) and (n, M)."""

    matrix: Tensor
    bias: Tensor


class OfDomain(nn.Module):
    """Of one domain: (K, K) and (M,)."""

    def __init__(self, matrix: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(matrix), nn.Parameter(bias)


class Layer(nn.Module, ABC):
    """A layer from N inputs, in one part or in two, to M outputs."""

    @abstractmethod
    def forward(self, parts: Sequence[Tensor], given: Modulation) -> Tensor:
        """Parts (R, ...) and (B, ...), or one (B, N), to (B, M)."""


def product(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Parts (R, ...) and (B, ...), or one (B, N), times a matrix (N, M): (B, M), the parts kept apart."""
    rows = torch.split(weight, [part.shape[1] for part in parts])
    return reduce(torch.add, [part @ own for part, own in zip(parts, rows, strict=True)])


MakeLayer = Callable[[Sequence[int], int], Layer]
"""From the parts' widths and M."""


class Beside(Body[Sequence[Modulation]]):
    """logit = L(x) + head(backbone(x)) + direct + out(the modulated MLP over x)."""

    def __init__(
        self, options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, layer: MakeLayer
    ) -> None:
        super().__init__(schema, dim)
        self.backbone = backbone(*self.fields)
        self.head = nn.Linear(self.backbone.width, 1)
        inputs = [self.widths, *((width,) for width in options.hidden[:-1])]
        self.layers = nn.ModuleList(layer(*each) for each in zip(inputs, options.hidden, strict=True))
        self.out = nn.Linear(options.hidden[-1], 1)

    def interact(self, request: Tensor, item: Tensor, own: Sequence[Modulation]) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        hidden, direct = self.backbone(request, item)
        parts = [flat(request), flat(item)]
        for layer, given in zip(self.layers, own, strict=True):
            parts = [torch.relu(layer(parts, given))]
        logit: Tensor = direct + self.head(hidden)[:, 0] + self.out(parts[0])[:, 0]
        return logit


class Condition(nn.Module):
    """An embedding z_d for each domain and the general one, and the MLP from it to all S_d and b_d.

    Embeddings start apart: from one value for all, the domains of the synthetic data were told apart late,
    and their AUC was lower. Biases start at 0, matrices near `start`.
    """

    def __init__(self, options: Options, dim: int, domains: int, start: Tensor) -> None:
        super().__init__()
        self.shape, self.biases = (len(options.hidden), *start.shape), list(options.hidden)
        self.embedding = nn.Parameter(torch.randn(domains + 1, dim))
        matrices = start.flatten().repeat(len(options.hidden))
        self.generate = mlp(dim, options.generator, len(matrices) + sum(self.biases))
        *_, weight, bias = self.generate.parameters()
        with torch.no_grad():
            weight[: len(matrices)] *= 0.1
            weight[len(matrices) :] = 0
            bias.copy_(torch.cat([matrices, torch.zeros(sum(self.biases))]))

    def forward(self) -> list[OfRows]:
        """Of every domain, the general one last: (D + 1, K, K) and (D + 1, M) of each layer."""
        matrices, biases = torch.tensor_split(self.generate(self.embedding), [math.prod(self.shape)], 1)
        each = torch.split(biases, self.biases, 1)
        return [OfRows(*of) for of in zip(matrices.reshape(-1, *self.shape).unbind(1), each, strict=True)]


class Modulated(Joint):
    """A network whose layers are given what the domains' condition generates."""

    def __init__(self, body: Body[Sequence[Modulation]], condition: Condition) -> None:
        super().__init__()
        self.body, self.condition = body, condition
        self.owned = frozenset(self.pack(None))

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        given = [OfRows(*(tensor[rows.domain] for tensor in layer)) for layer in self.condition()]
        logit: Tensor = self.body(rows.arrays, given)
        return logit

    def own(self, domain: int) -> nn.ModuleList:
        """The domain's matrix and bias of each layer, as they are generated now."""
        with torch.no_grad():
            return nn.ModuleList(
                OfDomain(*(tensor[domain] for tensor in layer)) for layer in self.condition()
            )

"""`Paradigm`: how a model treats domains."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn

from training.data.batches import Rows
from training.stages import Stage

Pack = dict[str, Tensor]
"""A domain's values for the tensors that a domain owns, by their name in the servable."""
Module = TypeVar("Module", bound=nn.Module)


class Paradigm(nn.Module, ABC):
    """A model of D domains and the general one.

    An option is a module with a pydantic model `Options` and
    `build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int)`
    that returns a paradigm of `domains` = D domains over the chosen backbone.
    """

    owned: frozenset[str]
    """Which tensors of the servable a domain owns. Everything else is the shared body."""
    most_rows = 8192
    """How many rows it scores at a time, so that what lies between its layers fits into memory."""

    @abstractmethod
    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,) of rows of any domains; domain index D is the general domain."""

    def both(self, rows: Rows, part: Rows) -> Tensor:
        """Logits (B + n,): of rows, and of the first n of them under the general domain, which is `part`."""
        logits: Tensor = self(rows.joined(part) if len(part) else rows)
        return logits

    def extra(self, rows: Rows) -> Tensor | None:
        """What else there is to the loss of a batch of all domains: a scalar; None for most."""
        del rows
        return None

    def batches(self, rows: Rows, size: int, seed: int) -> Iterator[Rows]:
        """An epoch's batches, in an order that `seed` decides."""
        return rows.shuffled(seed).batches(size)

    def alike(self, rows: Rows) -> Tensor | None:
        """An order (n,) in which rows are scored sooner, those that are alike together; None for any."""
        del rows
        return None

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """What to train, in order."""

    def trained_alone(self) -> frozenset[str]:
        """Parameters of the servable that a stage over each domain trains."""
        alone = (stage.trains for stage in self.stages() if stage.rows == "each domain")
        return frozenset[str]().union(*alone)

    @abstractmethod
    def servable(self) -> nn.Module:
        """The one-domain form: an `nn.Module` from `Arrays` to logits (B,), under the general pack.

        It shares the body's storage with the paradigm and has its own copy of what a domain owns.
        """

    @abstractmethod
    def pack(self, domain: int | None) -> Pack:
        """Copies of a domain's tensors as the stages over all domains left them; None: the general pack."""


def own_copy(module: Module, owned: frozenset[str]) -> Module:
    """A module that shares all tensors but the owned ones, of which it has copies.

    It also has its own counters, such as a BatchNorm's of batches: they move with training, and decide
    nothing.
    """
    counters = {name for name, tensor in module.state_dict().items() if not tensor.is_floating_point()}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    shared = {id(tensor): tensor for name, tensor in tensors if name not in owned | counters}
    return copy.deepcopy(module, shared)


def every_tensor(module: nn.Module) -> frozenset[str]:
    """The names of all parameters and all buffers of numbers with a fraction: running statistics.

    What is derived from the schema is none of them; nor is a BatchNorm's count of batches, which nothing
    reads while it has a momentum.
    """
    return frozenset(name for name, tensor in module.state_dict().items() if tensor.is_floating_point())

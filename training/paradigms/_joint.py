"""`Joint`: paradigms of one stage, in which a shared body meets what a domain owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.data.batches import Arrays
from training.nn.embedding import Embedding, FirstOrder
from training.paradigms._protocol import Pack, Paradigm, every_tensor, own_copy
from training.stages import Stage

Own = TypeVar("Own")
"""What the body takes from a domain: modules or tensors, of one domain or of each row's."""


class Body(nn.Module, ABC, Generic[Own]):
    """What all domains share; logit = L(x) + what its networks and the domain's make of the fields.

    The embeddings, the first-order part and the backbones' direct logits are everyone's, as in Mix and
    PLATE, so that a comparison with those differs in what domains own and in nothing else.
    """

    def __init__(self, schema: FeatureSchema, dim: int) -> None:
        super().__init__()
        self.embedding = Embedding(schema, dim)
        self.first_order = FirstOrder(schema)
        self.fields = len(self.embedding.request.keys), len(self.embedding.item.keys)
        self.widths = self.fields[0] * dim, self.fields[1] * dim

    def forward(self, arrays: Arrays, own: Own) -> Tensor:
        """Logits (B,).

        Args:
            arrays: as encoded, the request's with R = 1 or B rows.
            own: the domain's.
        """
        request, item = self.embedding(*arrays)
        first_order: Tensor = self.first_order(*arrays)
        return first_order + self.interact(request, item, own)

    @abstractmethod
    def interact(self, request: Tensor, item: Tensor, own: Own) -> Tensor:
        """From fields (R, F_q, K) and (B, F_i, K) to their part of the logit (B,)."""


class OneDomain(nn.Module):
    """The body, with what one domain owns."""

    def __init__(self, body: nn.Module, own: nn.Module) -> None:
        super().__init__()
        self.body, self.own = body, own

    def forward(
        self, request_ids: Tensor, request_numbers: Tensor, item_ids: Tensor, item_numbers: Tensor
    ) -> Tensor:
        """Logits (B,)."""
        logit: Tensor = self.body((request_ids, request_numbers, item_ids, item_numbers), self.own)
        return logit


class Joint(Paradigm):
    """Everything is trained at once over all domains; what a domain owns is then read off."""

    body: nn.Module

    @abstractmethod
    def own(self, domain: int) -> nn.Module:
        """What a domain owns, in the form that serves; -1 is the general one. It may be a part of this."""

    def stages(self) -> Sequence[Stage]:
        """One, over everything."""
        return (Stage("joint", "all domains", frozenset(name for name, _ in self.named_parameters())),)

    def servable(self) -> OneDomain:
        """The body and a copy of what the general domain owns."""
        return own_copy(OneDomain(self.body, self.own(-1)), self.owned)

    def pack(self, domain: int | None) -> Pack:
        """Whatever the domain owns."""
        own = self.own(-1 if domain is None else domain)
        tensors = own.state_dict()
        return {f"own.{name}": tensors[name].clone() for name in every_tensor(own)}

"""Mix: one model over all domains' rows; a domain owns its bias and nothing else (PLATE, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.ranker import MakeBackbone, Ranker
from training.paradigms._protocol import Pack, Paradigm, own_copy
from training.stages import Stage


class Options(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mix(Paradigm):
    """A plain ranker and a bias for each domain: the first-order weight of the domain's id."""

    owned = frozenset({"first_order.bias"})

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> None:
        super().__init__()
        self.general = Ranker(schema, backbone, dim)
        self.domain_bias = nn.Parameter(torch.zeros(domains))

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        bias = torch.cat([self.domain_bias, self.domain_bias.new_zeros(1)])
        return self.general.score(rows.arrays, None) + bias[rows.domain]

    def stages(self) -> Sequence[Stage]:
        """One, over everything."""
        return (Stage("joint", "all domains", frozenset(name for name, _ in self.named_parameters())),)

    def servable(self) -> Ranker:
        """The ranker, with a bias of its own."""
        return own_copy(self.general, self.owned)

    def pack(self, domain: int | None) -> Pack:
        """The bias of the first-order part, with the domain's."""
        bias = self.general.first_order.bias.detach()
        return {
            "first_order.bias": bias.clone() if domain is None else bias + self.domain_bias[domain].detach()
        }


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Mix:
    """Mix has no options."""
    del options
    return Mix(schema, backbone, dim, domains)

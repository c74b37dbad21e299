"""MLoRA (Yang et al., RecSys 2024): a domain owns a low-rank addition to every layer, W_d = W + B_d A_d.

Stage one trains what is common on all domains' rows, stage two, for each domain on its own rows, A_d, B_d and
an addition to the bias. B_d starts at 0, so domains start at the common model, which is also the general
pack. They are shipped as they are and not multiplied out: so a pack is small, and W, which is everyone's,
keeps its item halves. The layers are the linear ones of any backbone, and the head; where a layer is in two
halves, one for the request and one for the item, each has a product of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.ranker import MakeBackbone, Ranker
from training.paradigms._protocol import Pack, Paradigm, own_copy
from training.stages import Stage


class Options(BaseModel):
    """How much is added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] = 4
    """r of A_d (r, N) and B_d (M, r), for N inputs and M outputs; at most the smaller of these."""


class Addition(nn.Module):
    """B_d A_d x + b_d."""

    def __init__(self, inputs: int, out: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.B = nn.Parameter(torch.zeros(out, rank))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., M)."""
        return F.linear(F.linear(x, self.A), self.B, self.bias)


class Adapted(nn.Linear):
    """A linear layer's own weights, and a domain's addition to it."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        inputs, out, bias = linear.in_features, linear.out_features, linear.bias is not None
        super().__init__(inputs, out, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.addition = Addition(inputs, out, min(rank, inputs, out), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., M)."""
        y: Tensor = super().forward(x) + self.addition(x)
        return y


def adapt(module: nn.Module, rank: int) -> None:
    """Put every linear layer within a module into an adapted one."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Adapted(child, rank))
        else:
            adapt(child, rank)


class MLoRA(Paradigm):
    """The common ranker, whose additions are zero; a domain's are in its pack."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, rank: int) -> None:
        super().__init__()
        self.general = Ranker(schema, backbone, dim)
        adapt(self.general, rank)
        names = frozenset(name for name, _ in self.general.named_parameters())
        self.owned = frozenset(name for name in names if ".addition." in name)
        self.common = frozenset(f"general.{name}" for name in names - self.owned)

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        return self.general.score(rows.arrays, None)

    def stages(self) -> Sequence[Stage]:
        """What is common over all domains, then what is added over each."""
        return (
            Stage("joint", "all domains", self.common),
            Stage("tuning", "each domain", self.owned),
        )

    def servable(self) -> Ranker:
        """The ranker, with additions of its own."""
        return own_copy(self.general, self.owned)

    def pack(self, domain: int | None) -> Pack:
        """The additions that every domain starts with: A is random and B is 0."""
        del domain
        return {name: self.general.get_parameter(name).detach().clone() for name in self.owned}


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> MLoRA:
    """Low-rank additions to any backbone; there may be any number of domains."""
    del domains
    return MLoRA(schema, backbone, dim, options.rank)

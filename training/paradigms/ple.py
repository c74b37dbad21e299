"""PLE (Tang et al., RecSys 2020), of one level: a domain owns experts, a gate and a tower.

The gate is over the domain's own experts and the shared ones. An expert is a whole backbone; its direct logit
goes through the gate with its hidden units. There is one level, which the paper calls CGC: with more, a gate
for the shared experts of the next level reads every domain's, and a domain could neither be served without
the others nor added after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.nn.experts import Experts, Mixture
from training.nn.interactions import flat
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body
from training.paradigms._routed import Networks, Routed


class Options(BaseModel):
    """How many experts, and the towers' shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: Literal[1] = 1
    shared_experts: Annotated[int, Field(ge=1)] = 1
    own_experts: Annotated[int, Field(ge=1)] = 2
    """Of each domain."""
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (16,)
    """Hidden layers between the mixed experts and a domain's logit."""


class Shared(Body[Networks]):
    """logit = L(x) + the domain's extraction from the fields and the shared experts."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, experts: int) -> None:
        super().__init__(schema, dim)
        self.experts = Experts([backbone(*self.fields) for _ in range(experts)])

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        return own["extraction"](request, item, self.experts(request, item))


class Extraction(nn.Module):
    """A domain's customised gate control: own experts, gate and tower (section 4.1)."""

    def __init__(self, body: Shared, experts: Experts, hidden: int, tower: Sequence[int]) -> None:
        super().__init__()
        self.experts = experts
        count = len(body.experts.each) + len(experts.each)
        self.mixture = Mixture(*body.widths, count, hidden, tower)

    def forward(self, request: Tensor, item: Tensor, shared: Tensor) -> Tensor:
        """(R, F_q, K), (B, F_i, K) and what the shared experts found (B, E, H + 1) to (B,)."""
        found = torch.cat([shared, self.experts(request, item)], 1)
        logit: Tensor = self.mixture(flat(request), flat(item), found)
        return logit


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """Own experts, a gate and a tower for each domain beside shared experts."""
    body = Shared(schema, backbone, dim, options.shared_experts)
    own = [backbone(*body.fields) for _ in range(options.own_experts)]
    extraction = Extraction(body, Experts(own), own[0].width, options.tower)
    return Routed(body, nn.ModuleDict({"extraction": extraction}), domains)

"""M3oE (Zhang et al., SIGIR 2024): shared experts and an expert of each domain, fused at two levels.

At the first, domain d mixes the domains' experts by weights of its own, the largest of which starts on its
own expert; at the second it weighs that against the shared experts under its gate. Both weights are learned.
A domain also owns a scale and a shift of the fields, and a tower.

What differs from the paper and its published code:
- There is one task, so no group of task experts: it would be one more expert that all rows share, for which
  the shared group and its gate are there.
- The layer in front, W (.) W_d with a skip connection, is its diagonal case, as in SAR-Net: a full matrix
  over all fields would mix request and item, and leave no fields for a backbone, which an expert is here.
- In the first level the other domains share what a domain's own expert leaves in equal parts; here each has a
  weight. In the second the groups' weights sum to 1, so that an FM under them is still an FM.
- The weights are trained with everything else, not in turn on validation rows.

A row reads every domain's expert, so these are the body's, and serving costs grow with their number. A new
domain has none of its own: it begins with equal parts of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.nn.experts import Experts, Gate, Tower
from training.nn.interactions import flat
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body
from training.paradigms._routed import Networks, Routed
from training.paradigms.sarnet import Transform

OWN = 0.5
"""The share of its own expert that a domain starts with, of all domains' experts."""


class Options(BaseModel):
    """How many experts, and the towers' shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shared_experts: Annotated[int, Field(ge=1)] = 4
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (16,)
    """Hidden layers between what is fused and a domain's logit."""


class Shared(Body[Networks]):
    """logit = L(x) + fusion_d(x_d, shared experts of x_d, domains' experts of x_d); x_d = x w_d + b_d."""

    def __init__(
        self, options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int
    ) -> None:
        super().__init__(schema, dim)
        shared, special = (
            [backbone(*self.fields) for _ in range(count)] for count in (options.shared_experts, domains)
        )
        self.hidden = shared[0].width
        self.shared, self.special = Experts(shared), Experts(special)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        request, item = own["request"](request), own["item"](item)
        found = self.shared(request, item), self.special(request, item)
        return own["fusion"](flat(request), flat(item), *found)


class Fusion(nn.Module):
    """A domain's gate over E shared experts, its weights of D experts and of both groups, and its tower."""

    def __init__(
        self, widths: Sequence[int], shared_experts: int, domains: int, hidden: int, tower: Sequence[int]
    ) -> None:
        super().__init__()
        request, item = widths
        self.gate = Gate(request, item, shared_experts)
        self.experts = nn.Parameter(torch.zeros(domains))
        self.groups = nn.Parameter(torch.zeros(1))
        self.tower = Tower(hidden, tower)

    def forward(self, request: Tensor, item: Tensor, shared: Tensor, special: Tensor) -> Tensor:
        """(R, F_q * K), (B, F_i * K), (B, E, H + 1) and (B, D, H + 1) to (B,)."""
        common = self.gate.mean(request, item, shared)
        apart = (torch.softmax(self.experts, 0)[:, None] * special).sum(1)
        share = torch.sigmoid(self.groups)
        logit: Tensor = self.tower((1 - share) * common + share * apart)
        return logit


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """Experts of any kind, and a transform and a fusion for each domain."""
    body = Shared(options, schema, backbone, dim, domains)
    request, item = (Transform(fields, dim) for fields in body.fields)
    fusion = Fusion(body.widths, options.shared_experts, domains, body.hidden, options.tower)
    paradigm = Routed(body, nn.ModuleDict({"request": request, "item": item, "fusion": fusion}), domains)
    with torch.no_grad():
        for at in range(domains if domains > 1 else 0):
            own = cast("Fusion", paradigm.own(at)["fusion"])
            own.experts[at] = math.log((domains - 1) * OWN / (1 - OWN))
    return paradigm

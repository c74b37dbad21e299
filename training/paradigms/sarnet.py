"""SAR-Net (Shen et al., CIKM 2021): a domain owns a scale and a shift of the fields, and experts.

What all domains share: other experts, one gate over both kinds, and one tower. Left out are the attention
over a user's behaviour in other scenarios, for which there is no sequence here, and the fairness
coefficients, for which there are no promotions. An expert is a whole backbone where the paper has one layer;
its direct logit goes through the gate with its hidden units.
"""

from __future__ import annotations

from typing import Annotated

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
    """How many experts, and the tower's shape. The defaults are the paper's, but for its 8 shared experts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shared_experts: Annotated[int, Field(ge=1)] = 4
    own_experts: Annotated[int, Field(ge=1)] = 2
    """Of each domain."""
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (32, 32)
    """Hidden layers between the mixed experts and the logit."""


class Transform(nn.Module):
    """x w_d + b_d, element by element.

    It is the identity at the start, and the parameter is w_d - 1, so that L2 draws a domain towards the
    shared network and not towards nothing.
    """

    def __init__(self, fields: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(fields, dim))
        self.shift = nn.Parameter(torch.zeros(fields, dim))

    def forward(self, fields: Tensor) -> Tensor:
        """(n, F, K) to (n, F, K)."""
        return fields * (1 + self.scale) + self.shift


class Shared(Body[Networks]):
    """logit = L(x) + tower(gate(x_d) over shared and own experts of x_d), with x_d = x w_d + b_d."""

    def __init__(self, options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int) -> None:
        super().__init__(schema, dim)
        backbones = [backbone(*self.fields) for _ in range(options.shared_experts)]
        self.experts = Experts(backbones)
        count = options.shared_experts + options.own_experts
        self.mixture = Mixture(*self.widths, count, backbones[0].width, options.tower)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        request, item = own["request"](request), own["item"](item)
        found = torch.cat([self.experts(request, item), own["experts"](request, item)], 1)
        logit: Tensor = self.mixture(flat(request), flat(item), found)
        return logit


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """Transforms and experts for each domain, inside one shared network."""
    body = Shared(options, schema, backbone, dim)
    request, item = (Transform(fields, dim) for fields in body.fields)
    experts = Experts([backbone(*body.fields) for _ in range(options.own_experts)])
    networks = nn.ModuleDict({"request": request, "item": item, "experts": experts})
    return Routed(body, networks, domains)

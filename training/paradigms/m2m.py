"""M2M (Zhang et al., WSDM 2022): a domain owns the weights of meta units, generated from its embedding.

A meta unit is leaky_relu(W_d h + b_d), a whole layer that the domain gives. One is in the attention over
experts that all domains share, a softmax of v' unit(expert), and others, with a residual, are in front of the
tower. What is shipped is W_d and b_d, and tuning a domain tunes these.

Left out are the tasks, as there is one: their embedding beside the expert in the attention would be one more
constant in b_d; the Poisson loss, as there are clicks and no sums; and the transformer over behaviour. An
expert is a whole backbone; its direct logit goes through the attention with its hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.schema import FeatureSchema
from training.nn.experts import Experts, Tower
from training.nn.ranker import MakeBackbone
from training.paradigms import _modulated
from training.paradigms._joint import Body
from training.paradigms._modulated import Condition, Modulated, Modulation, Positive


class Options(BaseModel):
    """How many experts and units, and the shapes of generator and tower."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: Positive = 4
    """E."""
    units: Positive = 1
    """Meta units in front of the tower, each of H by H weights; the attention has one more."""
    generator: tuple[Positive, ...] = (32,)
    """Hidden layers from a domain's embedding to its units' weights."""
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (16,)
    """Hidden layers between the last unit and the logit."""


class Meta(Body[Sequence[Modulation]]):
    """logit = L(x) + tower(units_d(r)) + direct, with r and the direct logit averaged by the attention."""

    def __init__(self, options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int) -> None:
        super().__init__(schema, dim)
        backbones = [backbone(*self.fields) for _ in range(options.experts)]
        self.hidden = backbones[0].width
        self.experts = Experts(backbones)
        self.attend = nn.Linear(self.hidden, 1, bias=False)
        self.tower = Tower(self.hidden, options.tower)

    def interact(self, request: Tensor, item: Tensor, own: Sequence[Modulation]) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        attention, *units = own
        found = self.experts(request, item)
        scores = self.attend(F.leaky_relu(_given(found[:, :, :-1], attention)))
        mean = (torch.softmax(scores, 1) * found).sum(1, keepdim=True)
        hidden, direct = mean[:, :, :-1], mean[:, :, -1:]
        for unit in units:
            hidden = F.leaky_relu(_given(hidden, unit) + hidden)
        logit: Tensor = self.tower(torch.cat([hidden, direct], 2)[:, 0])
        return logit


def _given(x: Tensor, unit: Modulation) -> Tensor:
    """(B, n, H) to (B, n, H), by one domain's layer or each row's."""
    return x @ unit.matrix + unit.bias.unsqueeze(-2)


def build(
    options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int
) -> Modulated:
    """Over experts of any kind; units start near 0, so that experts count alike and domains are the same."""
    body = Meta(options, schema, backbone, dim)
    sizes = _modulated.Options(hidden=(body.hidden,) * (1 + options.units), generator=options.generator)
    return Modulated(body, Condition(sizes, dim, domains, torch.zeros(body.hidden, body.hidden)))

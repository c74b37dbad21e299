"""MMoE (Ma et al., KDD 2018): experts that all domains share; a domain owns its gate and its tower.

An expert is a whole backbone, so this is the model over any of them. Its direct logit goes through the gate
as its hidden units do: where that logit has no parameters, as an FM has none, the mean of equals is the
logit itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.schema import FeatureSchema
from training.nn.experts import Experts, Gate, Mixture
from training.nn.interactions import flat
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body
from training.paradigms._routed import Networks, Routed, Router


class Options(BaseModel):
    """How many experts, and the towers' shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: Annotated[int, Field(ge=1)] = 4
    """E."""
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (16,)
    """Hidden layers between the mixed experts and a domain's logit."""


class Shared(Body[Networks]):
    """logit = L(x) + tower_d(sum of softmax(W_d x)_e hidden_e) + sum of softmax(W_d x)_e direct_e."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, experts: int) -> None:
        super().__init__(schema, dim)
        backbones = [backbone(*self.fields) for _ in range(experts)]
        self.hidden = backbones[0].width
        self.experts = Experts(backbones)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        scopes, found = (flat(request), flat(item)), self.experts(request, item)
        if not isinstance(own, Router):
            return own["mixture"](*scopes, found)
        # Rows are then grouped for the towers alone: a tenth of a step.
        mixtures = cast("list[Mixture]", own.networks("mixture"))
        mean = _own_mean([mixture.gate for mixture in mixtures], own.places(), *scopes, found)
        return own.through([mixture.tower for mixture in mixtures], mean)


def _own_mean(gates: Sequence[Gate], places: Tensor, request: Tensor, item: Tensor, found: Tensor) -> Tensor:
    """What `Gate.mean` gives, of rows each with its own of P gates, which are computed as one layer.

    Args:
        gates: P of them.
        places: (B,), which of them is a row's.
        request: (B, F_q * K).
        item: (B, F_i * K).
        found: (B, E, H + 1).

    Returns:
        (B, H + 1).
    """
    weights = [torch.cat([getattr(gate, scope).weight for gate in gates]) for scope in ("request", "item")]
    bias = torch.cat([gate.request.bias for gate in gates])
    every = F.linear(request, weights[0], bias) + F.linear(item, weights[1])
    each = every.view(len(every), len(gates), -1)
    own = each.gather(1, places[:, None, None].expand(-1, 1, each.shape[2]))[:, 0]
    # Experts first: a softmax of neighbours in memory that are as few as experts takes longer.
    return (torch.softmax(own.t(), 0).t()[:, :, None] * found).sum(1)


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """A gate and a tower for each domain over experts of any kind."""
    body = Shared(schema, backbone, dim, options.experts)
    mixture = Mixture(*body.widths, options.experts, body.hidden, options.tower)
    return Routed(body, nn.ModuleDict({"mixture": mixture}), domains)

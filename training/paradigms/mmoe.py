"""MMoE (Ma et al., KDD 2018): experts that all domains share; a domain owns its gate and its tower.

An expert is a whole backbone, so this is the model over any of them. Its direct logit goes through the gate
as its hidden units do: where that logit has no parameters, as an FM has none, the mean of equals is the
logit itself.
"""

from __future__ import annotations

from typing import Annotated

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
        return own["mixture"](flat(request), flat(item), self.experts(request, item))


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """A gate and a tower for each domain over experts of any kind."""
    body = Shared(schema, backbone, dim, options.experts)
    mixture = Mixture(*body.widths, options.experts, body.hidden, options.tower)
    return Routed(body, nn.ModuleDict({"mixture": mixture}), domains)

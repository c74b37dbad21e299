"""Shared bottom (Caruana 1997): one backbone for all domains; a domain owns a tower on its hidden units."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.nn.interactions import mlp
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body
from training.paradigms._routed import Networks, Routed


class Options(BaseModel):
    """The towers' shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tower: tuple[Annotated[int, Field(ge=1)], ...] = (16,)
    """Hidden layers between the backbone and a domain's logit."""


class Bottom(Body[Networks]):
    """logit = L(x) + direct + tower_d(hidden)."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int) -> None:
        super().__init__(schema, dim)
        self.backbone = backbone(*self.fields)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        hidden, direct = self.backbone(request, item)
        logit: Tensor = direct + own["tower"](hidden)[:, 0]
        return logit


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """A tower for each domain over any backbone."""
    body = Bottom(schema, backbone, dim)
    tower = mlp(body.backbone.width, options.tower, 1)
    return Routed(body, nn.ModuleDict({"tower": tower}), domains)

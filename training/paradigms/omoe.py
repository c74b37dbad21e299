"""OMoE (Ma et al., KDD 2018): MMoE with one gate for all domains; a domain owns its tower."""

from __future__ import annotations

from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.nn.experts import Gate, Tower
from training.nn.interactions import flat
from training.nn.ranker import MakeBackbone
from training.paradigms import mmoe
from training.paradigms._routed import Networks, Routed


class Options(mmoe.Options):
    """The same."""


class OneGate(mmoe.Shared):
    """logit = L(x) + tower_d(sum of softmax(W x)_e hidden_e) + sum of softmax(W x)_e direct_e."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, experts: int) -> None:
        super().__init__(schema, backbone, dim, experts)
        self.gate = Gate(*self.widths, experts)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        return own["tower"](self.gate.mean(flat(request), flat(item), self.experts(request, item)))


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """A tower for each domain over experts of any kind, and one gate."""
    body = OneGate(schema, backbone, dim, options.experts)
    return Routed(body, nn.ModuleDict({"tower": Tower(body.hidden, options.tower)}), domains)

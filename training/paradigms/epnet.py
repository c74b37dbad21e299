"""EPNet (PEPNet, Chang et al., KDD 2023): a gate scales the fields; a domain owns the embedding it reads.

The gate, the paper's Gate NU, is 2 sigmoid(W' relu(W v + b) + b') over v = [e_d | x], and x' = gate (.) x is
what any backbone reads. The gate learns from its input x, but x does not learn from it. W' starts small and
b' at 0, so that all domains start near x itself.

Left out is PPNet, which gates the layers of the towers of a user's tasks: here there is one task, and
what is over the backbone is its head.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.nn.interactions import ScopedLinear, flat
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body
from training.paradigms._routed import Networks, Routed
from training.paradigms.star import Prompt


class Options(BaseModel):
    """The gate's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[int, Field(ge=1)] = 32
    reads: Literal["all", "request"] = "all"
    """What it sees: all fields, as in the paper, or the request's alone. Then the gate, and the request's
    part of the backbone, are computed once a request and not for each candidate."""


class Gate(nn.Module):
    """From [e_d | x] to a factor of each of `out` numbers, between 0 and 2."""

    def __init__(self, request: int, item: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first = ScopedLinear(request, item, hidden) if item else nn.Linear(request, hidden)
        self.second = nn.Linear(hidden, out)
        nn.init.normal_(self.second.weight, std=0.01)
        nn.init.zeros_(self.second.bias)

    def forward(self, *parts: Tensor) -> Tensor:
        """(R, request) and, if it reads the item, (B, item) to (R, out), or (B, out)."""
        factor: Tensor = 2 * torch.sigmoid(self.second(torch.relu(self.first(*parts))))
        return factor


class Scaled(Body[Networks]):
    """logit = L(x) + head(backbone(gate([e_d | x]) (.) x)) + direct."""

    def __init__(self, options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int) -> None:
        super().__init__(schema, dim)
        self.reads_item = options.reads == "all"
        of_request, of_item = self.widths
        self.gate = Gate(
            dim + of_request, of_item if self.reads_item else 0, options.hidden, of_request + of_item
        )
        self.backbone = backbone(*self.fields)
        self.head = nn.Linear(self.backbone.width, 1)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        seen = [torch.cat([own["prompt"](request), flat(request).detach()], 1)]
        if self.reads_item:
            seen.append(flat(item).detach())
        of_request, of_item = torch.split(self.gate(*seen), list(self.widths), 1)
        hidden, direct = self.backbone(
            request * of_request.reshape(-1, *request.shape[1:]),
            item * of_item.reshape(-1, *item.shape[1:]),
        )
        logit: Tensor = direct + self.head(hidden)[:, 0]
        return logit


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Routed:
    """A gate in front of any backbone, and an embedding for each domain."""
    body = Scaled(options, schema, backbone, dim)
    paradigm = Routed(body, nn.ModuleDict({"prompt": Prompt(dim)}), domains)
    for networks in paradigm.domains:
        # Apart, as domains with one embedding would be told apart late; their gates start alike all the same.
        nn.init.xavier_uniform_(cast("Prompt", cast("nn.ModuleDict", networks)["prompt"]).row)
    return paradigm

"""`Flat`: PLATE over DeepFM as one writes it first, the yardstick of what the servable's form is worth.

A row is a candidate with everything that is known of it and of the request, so all of the network runs for
every row, the user's prompt included. Weights are the servable's under one pack, built into the graph: it is
what a graph for each domain would be, with nothing to bind.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export import graph
from service.contract.manifest import GraphInput
from training.backbones.deepfm import DeepFM
from training.nn.ranker import Ranker
from training.paradigms._protocol import Pack

INPUT = "ids"


class Flat(nn.Module):
    """logit = L(x) + FM(z) + MLP(z), z = [P_domain | P_user | e_1 .. e_F].

    Args:
        servable: PLATE's with both prompts, over DeepFM; each of its fields has one id.
        pack: the tensors that the domain owns.

    Raises:
        TypeError: it is another servable.
    """

    profile: Tensor

    def __init__(self, servable: nn.Module, pack: Pack) -> None:
        super().__init__()
        ranker = copy.deepcopy(servable)
        if not isinstance(ranker, Ranker) or not isinstance(ranker.backbone, DeepFM):
            raise TypeError("the yardstick is written for PLATE over deepfm")
        if ranker.domain_prompt is None or ranker.user_prompt is None or ranker.correction is not None:
            raise TypeError("the yardstick is written for both prompts and a first-order weight for each row")
        ranker.load_state_dict({**ranker.state_dict(), **pack})
        self.embedding, self.weight = ranker.embedding.table, ranker.first_order.weight
        self.bias, self.domain_prompt = ranker.first_order.bias, ranker.domain_prompt
        self.register_buffer("profile", ranker.profile)
        self.user_prompt = ranker.user_prompt
        first = ranker.backbone.mlp.first
        layer = nn.Linear(first.request.in_features + first.item.in_features, first.item.out_features)
        layer.weight = nn.Parameter(torch.cat([first.request.weight, first.item.weight], 1).detach())
        layer.bias = first.request.bias
        self.mlp = nn.Sequential(layer, *ranker.backbone.mlp.rest)
        self.head = ranker.head

    def forward(self, *inputs: Tensor) -> Tensor:
        """One input, rows of the fused table (B, F), to logits (B,)."""
        (ids,) = inputs
        fields = F.embedding(ids, self.embedding)
        user = self.user_prompt(fields.index_select(1, self.profile).flatten(1))
        domain = self.domain_prompt.expand(ids.shape[0], -1)
        z = torch.cat([domain[:, None], user[:, None], fields], 1)
        fm = 0.5 * (z.sum(1).square() - z.square().sum(1)).sum(1)
        first_order = F.embedding(ids, self.weight[:, None]).sum((1, 2)) + self.bias
        logit: Tensor = first_order + fm + self.head(self.mlp(z.flatten(1)))[:, 0]
        return logit


def write(flat: Flat, fields: int, path: Path) -> None:
    """Export to `path`, over ids (B, `fields`) int32.

    Raises:
        RuntimeError: the exporter took the example's number of rows for a constant.
    """
    spec = GraphInput(name=INPUT, dtype="int32", shape=("B", fields), scope="item", source="schema")
    proto = graph.export(flat.eval(), [spec])
    (ids,) = proto.graph.input
    if not ids.type.tensor_type.shape.dim[0].dim_param:
        raise RuntimeError("the exporter took the example's number of rows for a constant")
    graph.save(proto, path)

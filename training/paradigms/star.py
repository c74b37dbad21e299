"""STAR (Sheng et al., CIKM 2021): a domain owns a factor of every weight, a normalisation and a prompt.

A row's logit is the sum of L(x), of the star-shaped network, whose weights for a domain are W (.) W_d and
whose biases are b + b_d, and of the auxiliary network. The star has layers of its own over the normalised
fields. The auxiliary network, which in the paper is a small one over the fields and the domain's embedding,
is the backbone here, with that embedding as one more field of the request, as PLATE's prompt is: so STAR is
over any backbone.

What is trained are W_d - 1 and b_d, from zero: at the start all domains are the shared network, and L2 draws
them towards it. What is shipped is the product, with the partitioned normalisation folded in.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.interactions import ScopedMLP, flat
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body, Joint
from training.paradigms._routed import Networks, Router

EPSILON = 1e-5
MOMENTUM = 0.01


class Options(BaseModel):
    """The star's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 32)


class Auxiliary(Body[Networks]):
    """logit = L(x) + backbone([e_d | e_request], e_item), the latter through a head, + star_d(x)."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int) -> None:
        super().__init__(schema, dim)
        of_request, of_item = self.fields
        self.backbone = backbone(1 + of_request, of_item)
        self.head = nn.Linear(self.backbone.width, 1)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        star = own["star"](flat(request), flat(item))
        prompted = torch.cat([own["prompt"](request)[:, None], request], 1)
        hidden, direct = self.backbone(prompted, item)
        logit: Tensor = star + direct + self.head(hidden)[:, 0]
        return logit


class Prompt(nn.Module):
    """A domain's embedding e_d, the same for every row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.empty(1, dim))
        nn.init.xavier_uniform_(self.row)

    def forward(self, request: Tensor) -> Tensor:
        """(R, F_q, K) to (R, K)."""
        return self.row.expand(len(request), -1)


class Norm(nn.Module):
    """A domain's part of the partitioned normalisation of N inputs.

    Statistics are of the domain's rows: the batch's in training, where there is more than one row, and their
    moving average else. That is the mean of all batches until there are 1 / MOMENTUM of them, so that a
    domain of few batches has statistics, too. The scale is counted from 1.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N) to (B, N), of mean 0 and variance 1."""
        mean, var = self.mean, self.var
        if self.training and len(x) > 1:
            mean = x.mean(0)
            var = (x - mean).square().mean(0)
            with torch.no_grad():
                self.batches += 1
                share = max(MOMENTUM, 1 / int(self.batches))
                self.mean.lerp_(mean, share)
                self.var.lerp_(var * (len(x) / (len(x) - 1)), share)
        return (x - mean) / torch.sqrt(var + EPSILON)


class Point(nn.Module):
    """What one domain adds to the centre: W_d - 1 and b_d of every layer, a normalisation and a prompt."""

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.factor = nn.ParameterList(torch.zeros(out, width) for width, out in pairwise(sizes))
        self.bias = nn.ParameterList(torch.zeros(out) for out in sizes[1:])
        self.norm = Norm(sizes[0])
        self.prompt = Prompt(dim)


class Centre(nn.Module):
    """The shared network of the star: W and b of every layer, and the normalisation's shared part."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, out) for width, out in pairwise(sizes))
        self.scale = nn.Parameter(torch.ones(sizes[0]))
        self.shift = nn.Parameter(torch.zeros(sizes[0]))

    def forward(self, point: Point, request: Tensor, item: Tensor) -> Tensor:
        """Logits of one domain's rows (B,), from (B, F_q * K) and (B, F_i * K)."""
        x = torch.cat([request, item], 1)
        x = point.norm(x) * (self.scale * (1 + point.norm.scale)) + (self.shift + point.norm.shift)
        *hidden, last = self.fused(point)
        for weight, bias in hidden:
            x = torch.relu(F.linear(x, weight, bias))
        return F.linear(x, *last)[:, 0]

    def fused(self, point: Point) -> list[tuple[Tensor, Tensor]]:
        """W (.) W_d (out, in) and b + b_d (out,) of each layer."""
        return [
            (layer.weight * (1 + factor), layer.bias + bias)
            for layer, factor, bias in zip(self.layers, point.factor, point.bias, strict=True)
        ]

    def folded(self, point: Point) -> list[tuple[Tensor, Tensor]]:
        """The same with the normalisation, as in eval mode, inside the first layer."""
        (weight, bias), *rest = self.fused(point)
        norm = point.norm
        scale = self.scale * (1 + norm.scale) / torch.sqrt(norm.var + EPSILON)
        shift = self.shift + norm.shift - norm.mean * scale
        return [(weight * scale, bias + weight @ shift), *rest]


class Plain(nn.Module):
    """A domain's star as it serves: layers with ReLU between them, the first in two halves."""

    def __init__(self, request: int, item: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.hidden = ScopedMLP(request, item, hidden, "none", 0)
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, F_q * K) and (B, F_i * K) to logits (B,)."""
        logit: Tensor = self.out(self.hidden(request, item))[:, 0]
        return logit

    @torch.no_grad()
    def fill(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take weights (out, in) and biases (out,) of layers over [request ; item]."""
        (weight, bias), *rest = layers
        first = self.hidden.first
        halves = torch.split(weight, [first.request.in_features, first.item.in_features], 1)
        first.request.weight.copy_(halves[0])
        first.item.weight.copy_(halves[1])
        first.request.bias.copy_(bias)
        linear = [layer for layer in (*self.hidden.rest, self.out) if isinstance(layer, nn.Linear)]
        for layer, (weight, bias) in zip(linear, rest, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


class Star(Joint):
    """The auxiliary network, the centre, and a point for each domain and the general one."""

    def __init__(self, hidden: Sequence[int], body: Auxiliary, dim: int, domains: int) -> None:
        super().__init__()
        sizes = [sum(body.widths), *hidden, 1]
        self.make = partial(Plain, *body.widths, hidden)
        self.body = body
        self.centre = Centre(sizes)
        point = Point(sizes, dim)
        self.points = nn.ModuleList(copy.deepcopy(point) for _ in range(domains + 1))
        self.owned = frozenset(self.pack(None))

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        points = [self._point(at) for at in range(len(self.points))]
        networks: list[Networks] = [
            {"prompt": point.prompt, "star": partial(self.centre, point)} for point in points
        ]
        logit: Tensor = self.body(rows.arrays, Router(networks, rows.domain))
        return logit

    def own(self, domain: int) -> nn.ModuleDict:
        """The domain's prompt, and its star as a plain network."""
        point = self._point(domain)
        star = self.make().to(point.prompt.row.device)
        star.fill(self.centre.folded(point))
        return nn.ModuleDict({"prompt": point.prompt, "star": star})

    def _point(self, domain: int) -> Point:
        return cast("Point", self.points[domain])


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Star:
    """A star beside any backbone."""
    return Star(options.hidden, Auxiliary(schema, backbone, dim), dim, domains)

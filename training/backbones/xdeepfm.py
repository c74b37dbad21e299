"""xDeepFM (Lian et al., KDD 2018): a compressed interaction network beside an MLP, over the same fields."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Norm, ScopedMLP, flat, no_logit

Positive = Annotated[int, Field(ge=1)]


class Options(BaseModel):
    """The shapes of the compressed interaction network and of the MLP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    maps: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 16)
    """H_k: feature maps of each layer of the compressed interaction network."""
    split_half: bool = True
    """Whether half of a layer's maps go to the next layer and the others to the output, as in the authors'
    code, instead of all of them to both, as in the paper; the last layer's all go to the output."""
    hidden: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 16)
    norm: Norm = "batch"
    """Of the MLP."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Of the MLP."""

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.split_half and any(size % 2 for size in self.maps[:-1]):
            raise ValueError("maps that are split in half are even in number")
        return self


class CIN(nn.Module):
    """X^k_h = sum over i, j of W^k_hij (X^{k-1}_i * X^0_j), then the sum of each map (eq. 6 and 7).

    X^0 are all fields. In the first layer both factors are, so it has the products within the request, which
    are computed on its own rows, and those of the item's fields with all: a pair of a request's and an item's
    field has one weight, where eq. 6 has W_ij + W_ji.
    """

    def __init__(self, request: int, item: int, maps: tuple[int, ...], *, split_half: bool) -> None:
        super().__init__()
        fields = request + item
        self.request = request
        passed = [size // 2 if split_half else size for size in maps[:-1]]
        self.kept = [size // 2 if split_half else size for size in maps[:-1]] + [maps[-1]]
        self.split_half, self.width = split_half, sum(self.kept)
        self.within = nn.Parameter(torch.empty(maps[0], request, request))
        """Of pairs of the request's fields, (H_1, F_q, F_q)."""
        sizes = zip(maps, [item, *passed], strict=True)
        self.weight = nn.ParameterList(torch.empty(size, before, fields) for size, before in sizes)
        """(H_k, maps before, F)."""
        for before, weight in zip([fields, *passed], self.weight, strict=True):
            nn.init.uniform_(weight, -((before * fields) ** -0.5), (before * fields) ** -0.5)
        nn.init.uniform_(self.within, -1 / fields, 1 / fields)

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B, width)."""
        # Fields last, so that what is summed over is a matrix product's.
        request, item = request.transpose(1, 2), item.transpose(1, 2)
        maps, added = item, _products(request, request, self.within)
        pooled = []
        for at, weight in enumerate(self.weight):
            found = self._layer(request, item, maps, weight)
            if at == 0:
                found = found + added
            last = at == len(self.weight) - 1
            kept, maps = found.chunk(2, 2) if self.split_half and not last else (found, found)
            pooled.append(kept.sum(1))
        return torch.cat(pooled, 1)

    def _layer(self, request: Tensor, item: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
        """(R, K, F_q), (B, K, F_i), maps (B, K, n) and their weight (m, n, F) to (B, K, m)."""
        if request.shape[0] > 1:  # not `len`, which an export would fix, rows and all
            return _products(maps, torch.cat([request, item], 2), weight)
        # One request is a matrix (n, m) for each of the K: its fields are summed over once.
        of_request, of_item = weight[..., : self.request], weight[..., self.request :]
        matrix = (request[0] @ of_request.permute(2, 1, 0).flatten(1)).view(-1, *weight.shape[1::-1])
        with_request: Tensor = (maps.transpose(0, 1) @ matrix).transpose(0, 1)
        return with_request + _products(maps, item, of_item)


def _products(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """(n, K, a) and (n, K, b) with a weight (m, a, b) for each pair, to (n, K, m)."""
    return F.linear((left[..., None] * right[:, :, None]).flatten(2), weight.flatten(1))


class XDeepFM(Backbone):
    """logit = head([pooled maps ; MLP]); the first-order part belongs to the paradigm."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        self.cin = CIN(request, item, options.maps, split_half=options.split_half)
        self.mlp = ScopedMLP(request * dim, item * dim, options.hidden, options.norm, options.dropout)
        self.width = self.cin.width + options.hidden[-1]

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H), pooled maps first, and zeros (B,)."""
        hidden = torch.cat([self.cin(request, item), self.mlp(flat(request), flat(item))], 1)
        return Interaction(hidden, no_logit(hidden))


def build(options: Options, request: int, item: int, dim: int) -> XDeepFM:
    """An xDeepFM over `request` + `item` fields of `dim`."""
    return XDeepFM(options, request, item, dim)

"""AITM (Xi et al., KDD 2021): a chain of networks, each of which takes over from the one before it.

A domain's place in the chain is a task's in the paper: q_d is what a network of its own makes
of the fields, here a whole backbone, p = g_d(z) what the place before hands on, and z_d their mean under an
attention of two, whose projections all places share. Left out is the loss that keeps a later task's
probability below an earlier one's: domains are no funnel.

z_d is made by the networks of all places up to d, and later ones read it; were they a domain's own, tuning
one would change others. So the body has them all and computes every z, and a domain owns which of them it
reads, and a tower. What serving costs grows with the number of domains, for each of them. The general domain
is the chain's last place, and behind everything that was learned is also where a new domain begins.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.errors import RunError
from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.experts import Experts, Tower
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body, Joint
from training.paradigms._routed import Router


class Options(BaseModel):
    """The chain's order, and the towers' shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Domains by their position in the data's list, the one that the others learn from first; empty: as
    they are listed."""
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (16,)
    """Hidden layers between z_d and a domain's logit."""


class Transfer(nn.Module):
    """AIT: z = sum of w_u h1(u) over u in {p, q}, with w the softmax of <h2(u), h3(u)> / sqrt(H).

    Direct logits are averaged by the same weights.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.h1, self.h2, self.h3 = (nn.Linear(hidden, hidden) for _ in range(3))

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """(B, H + 1) each to (B, H + 1)."""
        both = torch.stack([p, q], 1)
        hidden, direct = both[:, :, :-1], both[:, :, -1:]
        product = (self.h2(hidden) * self.h3(hidden)).sum(2, keepdim=True)
        weights = torch.softmax(product / math.sqrt(hidden.shape[2]), 1)
        return (weights * torch.cat([self.h1(hidden), direct], 2)).sum(1)


class Chain(nn.Module):
    """D + 1 backbones and what links each to the one before it."""

    def __init__(self, bottoms: Experts, hidden: int) -> None:
        super().__init__()
        self.bottoms = bottoms
        self.hand_on = nn.ModuleList(nn.Linear(hidden, hidden) for _ in bottoms.each[1:])
        self.transfer = Transfer(hidden)

    def forward(self, request: Tensor, item: Tensor) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to every z (B, D + 1, H + 1)."""
        found = [self.bottoms.one(0, request, item)]
        for place in range(1, len(self.bottoms.each)):
            found.append(self._next(place, found[-1], request, item))
        return torch.stack(found, 1)

    def reached(self, request: Tensor, item: Tensor, place: Tensor) -> Tensor:
        """The z of each row's own place, (B,) of them: (B, H + 1).

        A network computes the rows that need it and no others: rows are ordered so that those that end later
        are in front, and those left are always a slice.
        """
        order = torch.argsort(place, descending=True, stable=True)
        request, item = request.index_select(0, order), item.index_select(0, order)
        counts = torch.bincount(place, minlength=len(self.bottoms.each)).tolist()
        left, found, z = len(order), [], item.new_empty(0)
        for at, count in enumerate(counts):
            if not left:
                break
            of_rows = request[:left], item[:left]
            z = self._next(at, z[:left], *of_rows) if at else self.bottoms.one(0, *of_rows)
            left -= count
            found.append(z[left:])
        return torch.cat(found[::-1]).index_select(0, torch.argsort(order))

    def _next(self, place: int, z: Tensor, request: Tensor, item: Tensor) -> Tensor:
        p = torch.cat([self.hand_on[place - 1](z[:, :-1]), z[:, -1:]], 1)
        found: Tensor = self.transfer(p, self.bottoms.one(place, request, item))
        return found


End = Callable[[Chain, Tensor, Tensor], Tensor]
"""What reads the chain: from it, (R, F_q, K) and (B, F_i, K) to (B,)."""


class Linked(Body[End]):
    """logit = L(x) + tower_d(hidden units of z_d) + direct logit of z_d."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> None:
        super().__init__(schema, dim)
        bottoms = [backbone(*self.fields) for _ in range(domains + 1)]
        self.hidden = bottoms[0].width
        self.chain = Chain(Experts(bottoms), self.hidden)

    def interact(self, request: Tensor, item: Tensor, own: End) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        return own(self.chain, request, item)


class OwnEnd(nn.Module):
    """What a domain owns: its place, as a share of each z that is 1 for one of them, and its tower."""

    place: Tensor

    def __init__(self, place: Tensor, tower: nn.Module) -> None:
        super().__init__()
        self.register_buffer("place", place)
        self.tower = tower

    def forward(self, chain: Chain, request: Tensor, item: Tensor) -> Tensor:
        """(R, F_q, K) and (B, F_i, K) to (B,)."""
        logit: Tensor = self.tower((chain(request, item) * self.place[:, None]).sum(1))
        return logit


class AITM(Joint):
    """The chain, and a tower for each domain and the general one."""

    place: Tensor
    """(D + 1,): of each domain, and of the general one, which is the last."""

    def __init__(self, body: Linked, order: Sequence[int], tower: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        # Follows from the options, so it is no state to save.
        self.register_buffer("place", torch.argsort(torch.tensor([*order, len(order)])), persistent=False)
        own = nn.ModuleDict({"tower": Tower(body.hidden, tower)})
        self.domains = nn.ModuleList(copy.deepcopy(own) for _ in self.place)
        self.owned = frozenset(self.pack(None))

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        logit: Tensor = self.body(rows.arrays, partial(self._ends, rows.domain))
        return logit

    def own(self, domain: int) -> OwnEnd:
        """The domain's place and tower."""
        place = F.one_hot(self.place[domain], len(self.place)).float()
        return OwnEnd(place, self._networks(domain)["tower"])

    def _ends(self, domain: Tensor, chain: Chain, request: Tensor, item: Tensor) -> Tensor:
        router = Router([self._networks(at) for at in range(len(self.domains))], domain)
        return router["tower"](chain.reached(request, item, self.place[domain]))

    def _networks(self, domain: int) -> nn.ModuleDict:
        return cast("nn.ModuleDict", self.domains[domain])


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> AITM:
    """A chain of any backbones.

    Raises:
        RunError: the order has not each domain once.
    """
    order = options.order or range(domains)
    if sorted(order) != list(range(domains)):
        raise RunError(f"aitm: order has to have each of 0 to {domains - 1} once, not {list(order)}")
    return AITM(Linked(schema, backbone, dim, domains), order, options.tower)

"""`Routed`: paradigms whose domains own networks, and the `Router` that takes each row to its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from training.data.batches import Rows
from training.paradigms._joint import Body, Joint


class Networks(Protocol):
    """A domain's networks by name, or a batch's, where each row has its domain's."""

    def __getitem__(self, name: str, /) -> Callable[..., Tensor]:
        """From tensors with a row for each candidate to one such tensor."""
        ...


class Router:
    """The networks of a batch of several domains.

    Rows are grouped, so that a network computes its own rows and no others: towers cost what one would,
    nothing of one domain reaches another's statistics, and the parameters of a domain that is not in the
    batch have no gradient at all, so that the optimiser leaves them alone.
    """

    def __init__(self, domains: Sequence[Networks], domain: Tensor) -> None:
        self.domains = domains
        self.order = torch.argsort(domain, stable=True)
        self.back = torch.argsort(self.order)
        present, self._sorted_places, counts = torch.unique_consecutive(
            domain[self.order], return_inverse=True, return_counts=True
        )
        self.present: list[int] = present.tolist()
        self.counts: list[int] = counts.tolist()

    def __getitem__(self, name: str, /) -> Callable[..., Tensor]:
        """The network of that name of each row's domain."""
        return partial(self.through, self.networks(name))

    def networks(self, name: str) -> list[Callable[..., Tensor]]:
        """Those of that name of the P domains that the batch has."""
        return [self.domains[at][name] for at in self.present]

    def places(self) -> Tensor:
        """Which of them is each row's, (B,)."""
        places: Tensor = self._sorted_places.index_select(0, self.back)
        return places

    def through(self, networks: Sequence[Callable[..., Tensor]], *tensors: Tensor) -> Tensor:
        """(B, ...) each to (B, ...), in the rows' order, by one network for each of the batch's domains."""
        grouped = (torch.split(tensor.index_select(0, self.order), self.counts) for tensor in tensors)
        found = [network(*rows) for network, rows in zip(networks, zip(*grouped, strict=True), strict=True)]
        return torch.cat(found).index_select(0, self.back)


class Routed(Joint):
    """A body, and networks of the same shapes for each domain and the general one.

    They all start from the same values, so that what makes domains differ is their rows.
    """

    def __init__(self, body: Body[Networks], networks: nn.ModuleDict, domains: int) -> None:
        super().__init__()
        self.body = body
        self.domains = nn.ModuleList(copy.deepcopy(networks) for _ in range(domains + 1))
        self.owned = frozenset(self.pack(None))

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        networks = [self.own(at) for at in range(len(self.domains))]
        logit: Tensor = self.body(rows.arrays, Router(networks, rows.domain))
        return logit

    def own(self, domain: int) -> nn.ModuleDict:
        """The domain's networks."""
        return cast("nn.ModuleDict", self.domains[domain])

"""`Backbone`: how fields interact, whatever the domain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Interaction(NamedTuple):
    """What a backbone makes of a row."""

    hidden: Tensor
    """(B, H): hidden units, for a head or a tower."""
    logit: Tensor
    """(B,): the part of the logit that needs no head, such as an FM's; zeros if there is none."""


class Backbone(nn.Module, ABC):
    """A module over the field vectors of both scopes.

    An option is a module with a pydantic model `Options` and
    `build(options: Options, request: int, item: int, dim: int) -> Backbone`, where `request` and `item`
    are the numbers of fields F_q and F_i, prompts included, and `dim` is K.
    """

    width: int
    """H."""

    @abstractmethod
    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K), R = 1 or B, and (B, F_i, K). No row's result depends on other rows in eval mode."""

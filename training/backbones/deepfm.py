"""DeepFM (Guo et al. 2017): a factorisation machine beside an MLP, over the same field vectors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Norm, ScopedMLP, flat, fm


class Options(BaseModel):
    """The MLP's shape. The defaults are PLATE's for Douban (Table 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (16, 16)
    norm: Norm = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class DeepFM(Backbone):
    """logit = FM(fields) + head(MLP(fields)); the first-order part belongs to the paradigm."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        self.width = options.hidden[-1]
        self.mlp = ScopedMLP(request * dim, item * dim, options.hidden, options.norm, options.dropout)

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H) and the FM's logit (B,)."""
        return Interaction(self.mlp(flat(request), flat(item)), fm(request, item))


def build(options: Options, request: int, item: int, dim: int) -> DeepFM:
    """A DeepFM over `request` + `item` fields of `dim`."""
    return DeepFM(options, request, item, dim)

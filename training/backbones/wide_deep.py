"""Wide & Deep (Cheng et al. 2016): an MLP over the field vectors, beside the first-order part (eq. 3).

The wide part is a weight for each value of a field: the paradigm's L, which every backbone has beside it.
Hence all that is left here is the deep part. The paper's crossed features are columns of the data, not of the
model: a source that has them gives them as fields.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training.backbones._protocol import Backbone, Interaction
from training.nn.interactions import Norm, ScopedMLP, flat, no_logit


class Options(BaseModel):
    """The MLP's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (16, 16)
    norm: Norm = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class WideDeep(Backbone):
    """logit = head(MLP(fields)); the wide part belongs to the paradigm."""

    def __init__(self, options: Options, request: int, item: int, dim: int) -> None:
        super().__init__()
        self.width = options.hidden[-1]
        self.mlp = ScopedMLP(request * dim, item * dim, options.hidden, options.norm, options.dropout)

    def forward(self, request: Tensor, item: Tensor) -> Interaction:
        """(R, F_q, K) and (B, F_i, K) to hidden (B, H) and zeros (B,)."""
        hidden = self.mlp(flat(request), flat(item))
        return Interaction(hidden, no_logit(hidden))


def build(options: Options, request: int, item: int, dim: int) -> WideDeep:
    """The deep part over `request` + `item` fields of `dim`."""
    return WideDeep(options, request, item, dim)

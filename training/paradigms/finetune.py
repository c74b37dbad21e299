"""Pre-train and fine-tune: the mixed model, then a copy of all of it for each domain (PLATE, section 4.1).

A domain owns every tensor, running statistics included, so a pack is as large as the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn.ranker import MakeBackbone, Ranker
from training.paradigms._protocol import Pack, Paradigm, every_tensor, own_copy
from training.stages import Stage


class Options(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finetune(Paradigm):
    """One ranker for all domains until each goes its own way.

    With `from_scratch`, domains start from the initial ranker instead of the trained one.
    """

    def __init__(
        self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, from_scratch: bool = False
    ) -> None:
        super().__init__()
        self.general = Ranker(schema, backbone, dim)
        self.initial = copy.deepcopy(self.general).requires_grad_(False) if from_scratch else None
        self.owned = every_tensor(self.general)

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,)."""
        return self.general.score(rows.arrays, None)

    def stages(self) -> Sequence[Stage]:
        """Everything over all domains, then everything over each."""
        names = frozenset(name for name, _ in self.general.named_parameters())
        return (
            Stage("joint", "all domains", frozenset(f"general.{name}" for name in names)),
            Stage("tuning", "each domain", names),
        )

    def servable(self) -> Ranker:
        """A copy of the ranker."""
        return own_copy(self.general, self.owned)

    def pack(self, domain: int | None) -> Pack:
        """All of the ranker, or of what a domain starts from."""
        start = self.general if domain is None or self.initial is None else self.initial
        tensors = start.state_dict()
        return {name: tensors[name].clone() for name in self.owned}


def build(
    options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int
) -> Finetune:
    """Fine-tuning has no options, and is the same for any number of domains."""
    del options, domains
    return Finetune(schema, backbone, dim)

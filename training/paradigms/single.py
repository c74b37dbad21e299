"""Single: a model for each domain, trained on that domain's rows alone (PLATE, section 4.1).

A domain owns every tensor. The general pack is a model of its own, trained on all domains' rows.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from service.contract.schema import FeatureSchema
from training.nn.ranker import MakeBackbone
from training.paradigms.finetune import Finetune


class Options(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def build(
    options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int
) -> Finetune:
    """Fine-tuning that starts from the initial weights."""
    del options, domains
    return Finetune(schema, backbone, dim, from_scratch=True)

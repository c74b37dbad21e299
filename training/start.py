"""`Start`: a complete run that another one goes on from, with new rows under the same schema.

What is fitted stays: an id has the row of the table that it had. One that is new is unknown where its field
has a vocabulary, and has its bucket where it is hashed; of an item whose id is unknown the other fields still
tell. Numbers keep their mean and deviation. Every stage of the recipe is gone through again, from the old
values, and whether it got better is judged on the new validation rows, with the old values a candidate.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.contract import hashing
from service.contract.errors import RunError
from training import checkpoint
from training.data.prepare import Fitted
from training.model import Model
from training.paradigms._protocol import Pack
from training.recipe import Recipe

_SAME = ("paradigm", "backbone", "dim", "seed")
"""What decides which tensors there are, and what those are that no stage trains."""


@dataclass(frozen=True)
class Start:
    """A complete run's model."""

    model: Model
    digest: str
    """Of its weights: what the run that goes on from it is known by."""

    @classmethod
    def open(cls, folder: Path, data: Path, recipe: Recipe) -> Start:
        """The run in a folder, for a run of `recipe`.

        Args:
            folder: of the complete run.
            data: of prepared data sets.
            recipe: which may differ in data, rates and epochs.

        Raises:
            RunError: it is not complete, or of another model.
        """
        old, _, model, _ = checkpoint.load(folder, data)
        if odd := [name for name in _SAME if getattr(old, name) != getattr(recipe, name)]:
            raise RunError(
                f"{folder} cannot be gone on from: its recipe has another {', another '.join(odd)}"
            )
        return cls(model, _digest(folder))

    @property
    def fitted(self) -> Fitted:
        """What new rows are to be prepared for."""
        return Fitted(self.model.schema, self.model.domains)

    def begin(self, model: Model) -> None:
        """Give a new model the old one's values."""
        model.paradigm.load_state_dict(self.model.paradigm.state_dict())

    def tuned(self, domain: str, pack: Pack, trains: frozenset[str]) -> Pack:
        """What a domain's tuning starts from.

        What tuning had added to the old pack is added to the new one. Where the stages over all domains moved
        nothing, that is what tuning had made of it, bit by bit.

        Args:
            domain: its name.
            pack: of the new model, as the stages over all domains left it.
            trains: parameters that are tuned; other tensors are running statistics and the like, which stay
                as they were tuned.
        """
        tuned = self.model.tuned.get(domain)
        if tuned is None:
            return pack
        before = self.model.paradigm.pack(self.model.domains.index(domain))
        return {
            name: _moved(before[name], tuned[name], now.cpu(), name in trains) for name, now in pack.items()
        }


def _moved(before: Tensor, tuned: Tensor, now: Tensor, trained: bool) -> Tensor:
    return torch.where(now == before, tuned, now + (tuned - before)) if trained else tuned


def _digest(folder: Path) -> str:
    """Of the files of weights."""
    paths = [folder / "weights.safetensors", *sorted((folder / "domains").glob("*.safetensors"))]
    sums: dict[str, Any] = {path.name: hashing.file(path) for path in paths if path.exists()}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]

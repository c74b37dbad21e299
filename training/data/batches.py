"""`Rows`: encoded interactions as columns in memory, and the batches cut from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
import torch
from torch import Tensor

from service.contract.schema import FeatureSchema
from training.data.prepare import columns

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]
"""request_ids (R, W_q) int32, request_numbers (R, X_q), item_ids (B, W_i) int32, item_numbers (B, X_i)."""


@dataclass(frozen=True)
class Rows:
    """n interactions, one row each in both scopes."""

    request_ids: Tensor
    request_numbers: Tensor
    item_ids: Tensor
    item_numbers: Tensor
    domain: Tensor
    """(n,) int64, a position in the list of domains."""
    label: Tensor
    """(n,) float32, 0 or 1."""

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def encode(cls, frame: pl.DataFrame, schema: FeatureSchema, domains: Sequence[str]) -> Rows:
        """Encode prepared rows under a fitted schema."""
        request, item = (
            schema.encode(scope, columns(frame, schema, scope), len(frame)) for scope in ("request", "item")
        )
        place = {domain: at for at, domain in enumerate(domains)}
        domain = frame["domain"].replace_strict(place, return_dtype=pl.Int64).to_numpy()
        arrays = (request.ids, request.numbers, item.ids, item.numbers, domain)
        label = frame["label"].to_numpy().astype(np.float32)
        return cls(*(torch.from_numpy(np.array(array)) for array in (*arrays, label)))

    @property
    def arrays(self) -> Arrays:
        """What a network reads, without domain and label."""
        return self.request_ids, self.request_numbers, self.item_ids, self.item_numbers

    def __getitem__(self, at: Tensor | slice) -> Rows:
        """Some of the rows; views of them for a slice."""
        return Rows(*(getattr(self, column.name)[at] for column in fields(self)))

    def of(self, domain: int) -> Rows:
        """The rows of one domain."""
        return self[self.domain == domain]

    def shuffled(self, seed: int) -> Rows:
        """All rows in an order that `seed` decides."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        # Once for all batches, and by `index_select`: indexing takes three times as long.
        return Rows(*(getattr(self, column.name).index_select(0, order) for column in fields(self)))

    def batches(self, size: int) -> Iterator[Rows]:
        """Consecutive batches; the last one may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def joined(self, other: Rows) -> Rows:
        """These rows, then the other's."""
        return Rows(*(torch.cat([getattr(self, c.name), getattr(other, c.name)]) for c in fields(self)))

    def under(self, domain: int) -> Rows:
        """The same rows, as if they had come from `domain`."""
        return Rows(*self.arrays, torch.full_like(self.domain, domain), self.label)

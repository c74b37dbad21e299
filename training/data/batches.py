"""`Rows`: encoded interactions as columns in memory, and the batches cut from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from service.contract.schema import FeatureSchema
from training.data.prepare import columns

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]
"""request_ids (R, W_q) int32, request_numbers (R, X_q), item_ids (B, W_i) int32, item_numbers (B, X_i)."""

UNKNOWN = -1
"""No grade."""


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
    target: Tensor | None = None
    """(n, 1 + r) float32: what a teacher says of a row, its logit and its representation."""
    grade: Tensor | None = None
    """(n,) int64, what the label was cut from; `UNKNOWN` where that is not known."""
    text: Tensor | None = None
    """(n,) int64, a position in a list of texts (`training.align`)."""

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
        rows = cls(*(torch.from_numpy(np.array(array)) for array in (*arrays, label)))
        if "grade" not in frame:
            return rows
        grade = frame["grade"].fill_null(UNKNOWN).cast(pl.Int64).to_numpy()
        return replace(rows, grade=torch.from_numpy(np.array(grade)))

    @property
    def arrays(self) -> Arrays:
        """What a network reads, without domain and label."""
        return self.request_ids, self.request_numbers, self.item_ids, self.item_numbers

    def __getitem__(self, at: Tensor | slice) -> Rows:
        """Some of the rows; views of them for a slice."""
        return self._each(lambda column: column[at])

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        return self._each(lambda column: column.to(device))

    def of(self, domain: int) -> Rows:
        """The rows of one domain."""
        return self[self.domain == domain]

    def counts(self, domains: int) -> list[int]:
        """How many rows each of the D domains has."""
        counts: list[int] = torch.bincount(self.domain, minlength=domains).tolist()
        return counts

    def copied(self) -> Rows:
        """The same rows in memory of their own."""
        return self._each(torch.clone)

    def shuffled(self, seed: int) -> Rows:
        """All rows in an order that `seed` decides."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.ordered(order.to(self.label.device))

    def ordered(self, order: Tensor) -> Rows:
        """All rows, or some, in the order of these positions."""
        # Once for all batches, and by `index_select`: indexing takes three times as long.
        return self._each(lambda column: column.index_select(0, order))

    def batches(self, size: int) -> Iterator[Rows]:
        """Consecutive batches; the last one may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def joined(self, other: Rows) -> Rows:
        """These rows, then the other's; what is not in both is in neither."""
        pairs = zip(self._columns(), other._columns(), strict=True)
        return Rows(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]

    def under(self, domain: int) -> Rows:
        """The same rows, as if they had come from `domain`."""
        return replace(self, domain=torch.full_like(self.domain, domain))

    def _columns(self) -> list[Tensor | None]:
        return [getattr(self, column.name) for column in fields(self)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        return Rows(*(None if column is None else change(column) for column in self._columns()))  # type: ignore[arg-type]

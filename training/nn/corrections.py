"""What a domain adds to the shared first-order part, in a form that need not grow with the vocabulary.

The first-order part L has a weight for each of the V rows, so a domain's own copy of it is as large as
the vocabulary. A correction is a smaller function of the same fields, added to the shared L: it starts at
zero, and only it is tuned and shipped.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.hashing import bucket
from service.contract.schema import FeatureSchema
from training.data.batches import Arrays
from training.nn.embedding import Lookup

Form = Literal["user", "hashed", "embedding"]


class SharedWeights(nn.Module):
    """A weight for each of `size` groups of rows; rows of no group have none.

    Args:
        schema: the fields.
        group: (V,) the group of each row, or `size` for none.
        size: how many groups.
    """

    group: Tensor

    def __init__(self, schema: FeatureSchema, group: Tensor, size: int) -> None:
        super().__init__()
        self.request = Lookup(schema, "request")
        self.item = Lookup(schema, "item")
        # Derived from the schema, so it is no state to save.
        self.register_buffer("group", group.to(torch.int32), persistent=False)
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, arrays: Arrays, request: Tensor, item: Tensor) -> Tensor:
        """(B,), from the ids."""
        del request, item
        request_ids, request_numbers, item_ids, item_numbers = arrays
        weight = F.embedding(self.group, F.pad(self.weight, (0, 1))[:, None])
        of_request: Tensor = self.request(weight, request_ids, request_numbers).sum((1, 2))
        of_item: Tensor = self.item(weight, item_ids, item_numbers).sum((1, 2))
        return of_request + of_item


class EmbeddingWeights(nn.Module):
    """A vector for each field, whose product with its shared embedding is added: (F_q + F_i) * K floats.

    Over all rows and domains it is a correction of rank K, whose left factor is the shared table.
    """

    def __init__(self, request: int, item: int, dim: int) -> None:
        super().__init__()
        self.request = nn.Parameter(torch.zeros(request, dim))
        self.item = nn.Parameter(torch.zeros(item, dim))

    def forward(self, arrays: Arrays, request: Tensor, item: Tensor) -> Tensor:
        """(B,), from the fields' embeddings (R, F_q, K) and (B, F_i, K)."""
        del arrays
        return (request * self.request).sum((1, 2)) + (item * self.item).sum((1, 2))


def build(form: Form, schema: FeatureSchema, dim: int, size: int) -> nn.Module:
    """A correction that is zero.

    Args:
        form: `user` has a weight for each row of the user's own fields, `hashed` one for each of `size`
            buckets that rows share by hash, `embedding` a vector for each field.
        schema: the fields.
        dim: K.
        size: buckets of `hashed`.
    """
    if form == "embedding":
        fields = (len(Lookup(schema, "request").keys), len(Lookup(schema, "item").keys))
        return EmbeddingWeights(*fields, dim)
    if form == "hashed":
        group = torch.tensor([bucket(row, size) for row in range(schema.rows)])
        return SharedWeights(schema, group, size)
    owned = [slot for slot in schema.slots.values() if slot.field.owner == "user"]
    rows = torch.cat([torch.arange(slot.offset, slot.offset + slot.field.rows) for slot in owned])
    group = torch.full((schema.rows,), len(rows))
    group[rows] = torch.arange(len(rows))
    return SharedWeights(schema, group, len(rows))

"""The fused table of a schema: the only place where embedding tables are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.contract.field import PAD, Scope
from service.contract.schema import FeatureSchema


class _Rows(torch.autograd.Function):
    """Rows of one table at several places, as `F.embedding` gives them for each.

    Autograd would make a (V, K) gradient for every look-up and add them up; here there is one. `scatter_add_`
    makes it several times faster on a CPU than the gradient of `F.embedding`, to the same sums.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, *places: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - torch's
        """(V, K) and integers of any shapes to the rows there, (*shape, K) each."""
        ctx.shape = table.shape
        ctx.save_for_backward(*places)
        return tuple(F.embedding(at, table) for at in places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """The table's gradient (V, K), and none for places."""
        V, K = ctx.shape
        total = gradients[0].new_zeros(V, K)
        for at, gradient in zip(ctx.saved_tensors, gradients, strict=True):
            total.scatter_add_(0, at.flatten().long()[:, None].expand(-1, K), gradient.reshape(-1, K))
        return total, *(None for _ in gradients)


def _look_up(table: Tensor, places: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _Rows.apply(table, *places)  # type: ignore[no-untyped-call]
    return found


class Lookup(nn.Module):
    """Turns one scope's arrays into one vector a field, out of any table with a row for each of V.

    Fields stand in the order of `keys`: those with ids first, then the numeric ones. A multi-valued field is
    the mean of its values, zero if it has none; a number is its row scaled by the value; a vector is the sum
    of its rows, each scaled by its number.
    """

    number_rows: Tensor

    def __init__(self, schema: FeatureSchema, scope: Scope) -> None:
        super().__init__()
        slots = schema.scope(scope)
        with_ids = [slot for slot in slots if not slot.field.numeric]
        numeric = [slot for slot in slots if slot.field.numeric]
        self.keys = [slot.field.key for slot in (*with_ids, *numeric)]
        self._widths = [slot.field.width for slot in with_ids]
        self._multiple = any(slot.field.multiple for slot in with_ids)
        self._columns = [slot.at for slot in numeric]
        rows = [slot.offset + at for slot in numeric for at in range(slot.field.rows)]
        # Derived from the schema, so it is no state to save.
        self.register_buffer("number_rows", torch.tensor(rows, dtype=torch.int32), persistent=False)

    def forward(self, table: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
        """Look up.

        Args:
            table: (V, K).
            ids: (n, W) int32, `PAD` where a list has ended.
            numbers: (n, X) float32.

        Returns:
            (n, F, K).
        """
        return self.vectors(_look_up(table, self.places(ids)), ids, numbers)

    def places(self, ids: Tensor) -> list[Tensor]:
        """Which rows of a table `vectors` needs: (n, W) of ids and (X,) of numbers, if there are any."""
        places = []
        if self._widths:
            places.append(ids.clamp(min=0) if self._multiple else ids)
        if len(self.number_rows):
            places.append(self.number_rows)
        return places

    def vectors(self, rows: Sequence[Tensor], ids: Tensor, numbers: Tensor) -> Tensor:
        """What `forward` gives, from the rows at `places`: (n, W, K) and (X, K)."""
        parts = []
        if self._widths:
            parts.append(self._pooled(rows[0], ids) if self._multiple else rows[0])
        if len(self.number_rows):
            parts += self._scaled(rows[-1], numbers)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _scaled(self, rows: Tensor, numbers: Tensor) -> list[Tensor]:
        if len(self._columns) == len(rows):  # no vector among them
            return [rows * numbers[:, :, None]]
        return [(numbers[:, at] @ rows[at])[:, None] for at in self._columns]

    def _pooled(self, rows: Tensor, ids: Tensor) -> Tensor:
        present = (ids != PAD).to(rows.dtype)[:, :, None]
        fields = []
        parts = (torch.split(each, self._widths, 1) for each in (rows * present, present))
        for part, count in zip(*parts, strict=True):
            fields.append(part if part.shape[1] == 1 else part.sum(1, True) / count.sum(1, True).clamp(min=1))
        return torch.cat(fields, 1)


class _BothScopes(nn.Module):
    """Looks both scopes up in one table, with one gradient for the two."""

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        self.request = Lookup(schema, "request")
        self.item = Lookup(schema, "item")

    def look_up(
        self,
        table: Tensor,
        request_ids: Tensor,
        request_numbers: Tensor,
        item_ids: Tensor,
        item_numbers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(R, F_q, K) and (B, F_i, K) out of a table (V, K)."""
        request, item = self.request.places(request_ids), self.item.places(item_ids)
        rows = _look_up(table, [*request, *item])
        return (
            self.request.vectors(rows[: len(request)], request_ids, request_numbers),
            self.item.vectors(rows[len(request) :], item_ids, item_numbers),
        )


class Embedding(_BothScopes):
    """E: one K-vector for each of the V rows of a schema."""

    def __init__(self, schema: FeatureSchema, dim: int) -> None:
        super().__init__(schema)
        self.table = nn.Parameter(torch.empty(schema.rows, dim))
        nn.init.xavier_uniform_(self.table)

    def forward(
        self, request_ids: Tensor, request_numbers: Tensor, item_ids: Tensor, item_numbers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R, F_q, K) of the request and (B, F_i, K) of the items; R is 1 or B."""
        return self.look_up(self.table, request_ids, request_numbers, item_ids, item_numbers)


class FirstOrder(_BothScopes):
    """L: one weight for each of the V rows, and a bias.

    The weights start at 0. Published code starts them at N(0, 1), from where rows with little data do not
    come back; on Douban that costs a point of AUC.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__(schema)
        self.weight = nn.Parameter(torch.zeros(schema.rows))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(
        self, request_ids: Tensor, request_numbers: Tensor, item_ids: Tensor, item_numbers: Tensor
    ) -> Tensor:
        """The sum of the weights of a row's fields, (B,)."""
        request, item = self.look_up(
            self.weight[:, None], request_ids, request_numbers, item_ids, item_numbers
        )
        out: Tensor = request.sum((1, 2)) + item.sum((1, 2)) + self.bias
        return out

"""`Exchange`: what the ranks tell each other in a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.data.batches import Rows
from training.nn.embedding import Embedding, FirstOrder
from training.ranks import Ranks


class Exchange:
    """Makes of every rank's gradients those of the whole batch, by one all-reduce.

    Of a table it sends only the rows that the whole batch reads. All ranks shuffle alike, so each knows them
    without being told, and no ids are sent. Then all take the same step, a dense one.

    Running statistics are each rank's of its own rows; they move by the mean of the ranks' moves. So after
    a step there is nothing in the module in which ranks differ, and rank 0 can save it alone at any time.

    Args:
        ranks: two or more.
        module: the same on all of them.
        parameters: those of it that are trained.
    """

    def __init__(self, ranks: Ranks, module: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.ranks, self.parameters = ranks, parameters
        self.readers = [each for each in module.modules() if isinstance(each, Embedding | FirstOrder)]
        self.tables = {
            id(each.table if isinstance(each, Embedding) else each.weight) for each in self.readers
        }
        buffers = list(module.buffers())
        self.statistics = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.counters = [buffer for buffer in buffers if not buffer.is_floating_point() and not buffer.dim()]
        self.before = self._moving()

    def __call__(self, batch: Rows, losses: Sequence[Tensor]) -> Tensor:
        """Exchange what this rank's backward pass left.

        Args:
            batch: the whole one, B rows.
            losses: this rank's parts of the batch's loss, scalars.

        Returns:
            The loss of the whole batch.
        """
        rows = self.read_by(batch)
        there = [float(parameter.grad is not None) for parameter in self.parameters]
        statistics, counters = self._moving()
        parts = [torch.stack(list(losses)).sum(), torch.tensor(there, device=rows.device)]
        parts += [statistics - self.before[0], (counters - self.before[1]).float()]
        for parameter in self.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts.append(gradient.index_select(0, rows) if id(parameter) in self.tables else gradient)
        flat = self.ranks.sum([part.reshape(-1) for part in parts])
        sizes = [part.numel() for part in parts]
        total, anywhere, moved, counted, *gradients = torch.split_with_sizes(flat, sizes)
        self._move(moved, counted)
        for parameter, found, sent in zip(self.parameters, gradients, anywhere.tolist(), strict=True):
            if not sent:
                continue  # no rank's rows need it, and then a step leaves it alone
            if id(parameter) not in self.tables:
                parameter.grad = found.view_as(parameter)
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.index_copy_(0, rows, found.view(len(rows), *parameter.shape[1:]))
        return total.reshape(())

    def read_by(self, batch: Rows) -> Tensor:
        """Which rows of a table (n,) a batch reads, in ascending order."""
        if not self.readers:
            return torch.empty(0, dtype=torch.int64, device=self.parameters[0].device)
        reader = self.readers[0]  # all have the schema, and so its rows
        table = reader.table if isinstance(reader, Embedding) else reader.weight
        # Marks take a byte a row of the table, and no sorting of ids.
        read = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        for at in (*reader.request.places(batch.request_ids), *reader.item.places(batch.item_ids)):
            read.index_fill_(0, at.flatten().long(), True)
        return read.nonzero()[:, 0]

    def _moving(self) -> tuple[Tensor, Tensor]:
        """Copies of what a forward pass may move: running statistics (n,), and counters (m,)."""
        device = self.parameters[0].device
        statistics = [torch.empty(0, device=device), *(buffer.reshape(-1) for buffer in self.statistics)]
        counters = [torch.empty(0, dtype=torch.int64, device=device), *(b[None] for b in self.counters)]
        return torch.cat(statistics), torch.cat(counters)

    def _move(self, moved: Tensor, counted: Tensor) -> None:
        """From where they stood before the step, by the ranks' moves."""
        statistics, counters = self.before
        # A counter counts the batches that any rank has counted.
        self.before = (
            statistics + moved / self.ranks.size,
            counters + (counted / self.ranks.size).ceil().to(counters.dtype),
        )
        sizes = [buffer.numel() for buffer in self.statistics]
        for buffer, values in zip(
            self.statistics, torch.split_with_sizes(self.before[0], sizes), strict=True
        ):
            buffer.copy_(values.view_as(buffer))
        for buffer, value in zip(self.counters, self.before[1], strict=True):
            buffer.copy_(value)

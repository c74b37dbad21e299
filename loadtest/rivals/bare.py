"""The bare loop: what DeepFM's arithmetic costs in plain PyTorch, with nothing around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class BareDeepFM(nn.Module):
    """DeepFM over one table with offsets, and a bias for each domain.

    Args:
        rows: V, of all fields together.
        fields: F.
        domains: D.
        dim: K.
        hidden: widths of the MLP.
        dropout: after every layer of it.
    """

    def __init__(
        self, rows: int, fields: int, domains: int, *, dim: int, hidden: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, dim)
        self.first_order = nn.Embedding(rows, 1)
        self.domain = nn.Embedding(domains, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.first_order.weight)
        nn.init.zeros_(self.domain.weight)
        layers: list[nn.Module] = []
        width = fields * dim
        for out in hidden:
            layers += [nn.Linear(width, out), nn.BatchNorm1d(out), nn.ReLU(), nn.Dropout(dropout)]
            width = out
        self.mlp = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, ids: Tensor, domain: Tensor) -> Tensor:
        """Rows of the table (B, F) and domains (B,) to logits (B,)."""
        fields = self.embedding(ids)
        fm = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1)
        first = self.first_order(ids).sum((1, 2)) + self.domain(domain)[:, 0] + self.bias
        logit: Tensor = first + fm + self.mlp(fields.flatten(1))[:, 0]
        return logit


def epoch(
    model: BareDeepFM,
    optimiser: torch.optim.Optimizer,
    columns: tuple[Tensor, Tensor, Tensor],
    batch: int,
) -> None:
    """Train once on all rows, shuffled.

    Args:
        model: in train mode.
        optimiser: of its parameters.
        columns: ids (n, F), domain (n,), label (n,).
        batch: rows a step.
    """
    order = torch.randperm(len(columns[0]))
    ids, domain, label = (column.index_select(0, order) for column in columns)
    for start in range(0, len(label), batch):
        part = slice(start, start + batch)
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(model(ids[part], domain[part]), label[part])
        torch.autograd.backward(loss)
        optimiser.step()

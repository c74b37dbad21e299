"""What Uni-CTR puts beside a language model for each domain: ladders, a gate and a tower."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Ladder(nn.Module):
    """Self-attention between the tokens of a text, at a part of the language model's width.

    Down-projection, attention with residual and norm, up-projection, residual and norm. The published code
    attends over the batch instead, and lets tokens see the padding.
    """

    def __init__(self, width: int, reduce: int, heads: int, dropout: float) -> None:
        super().__init__()
        small = width // reduce
        self.heads = heads
        self.down = nn.Sequential(nn.Linear(width, small), nn.ReLU(), nn.Linear(small, small))
        self.attend = nn.Linear(small, 3 * small)
        self.mixed = nn.Linear(small, small)
        self.inner = nn.LayerNorm(small)
        self.up = nn.Sequential(nn.Linear(small, small), nn.ReLU(), nn.Linear(small, width))
        self.outer = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        """(B, J, width) and which tokens are no padding (B, J) to (B, J, width)."""
        low = self.down(hidden)
        B, J, small = low.shape
        query, key, value = (
            part.view(B, J, self.heads, small // self.heads).transpose(1, 2)
            for part in self.attend(low).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=present[:, None, None, :])
        low = self.inner(low + self.mixed(seen.transpose(1, 2).reshape(B, J, small)))
        out: Tensor = self.outer(hidden + self.dropout(self.up(low)))
        return out


class Gate(nn.Module):
    """One vector of many tokens: the sum weighted by softmax(tanh(O W_k) w_q) (eq. 11 and 12)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(B, J, width) and which tokens are no padding (B, J) to (B, width)."""
        score = self.query(torch.tanh(self.key(tokens)))[:, :, 0].float()
        weight = score.masked_fill(~present, -torch.inf).softmax(1).to(tokens.dtype)
        found: Tensor = (weight[:, None] @ tokens)[:, 0]
        return found


class DomainNetwork(nn.Module):
    """A domain's own part: ladders up the layers, a gate over all tokens, a tower (section IV-D).

    Args:
        width: of the language model.
        rungs: F, how many of its layers the ladders read; 0 leaves them out.
        reduce: how much narrower a ladder is.
        heads: of a ladder's attention.
        tower: widths of the hidden layers.
        dropout: in ladders and tower.
    """

    def __init__(
        self, width: int, *, rungs: int, reduce: int, heads: int, tower: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.ladders = nn.ModuleList(Ladder(width, reduce, heads, dropout) for _ in range(rungs))
        self.gate = Gate(width)
        layers: list[nn.Module] = []
        for before, after in pairwise((width, *tower)):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(dropout)]
        self.tower = nn.Sequential(*layers, nn.Linear(tower[-1], 1))

    def forward(self, layers: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,) and representations R (B, width).

        Args:
            layers: what the language model's layers give, F of them and the last one (the F-th again, where
                its number divides by that of the ladders): (B, J, width) each.
            present: (B, J), which tokens are no padding.
        """
        tokens = layers[-1]
        if self.ladders:
            rung = torch.zeros_like(tokens)
            for ladder, layer in zip(self.ladders, layers[:-1], strict=True):
                rung = ladder(layer + rung, present)
            tokens, present = torch.cat([tokens, rung], 1), torch.cat([present, present], 1)
        found = self.gate(tokens, present)
        return self.tower(found)[:, 0].float(), found.float()

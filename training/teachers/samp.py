"""SAMP, the scenario-aware meta prompting of CSAMP (section 4.1).

A frozen language model reads an item's text behind prompts that a small network, the meta network, makes
out of what is known of a domain. What represents domain k is SR_k = [IR_k ; ER_k]. ER_k are embeddings of
static features of its training rows, IR_k the mean ER of the domains that are most like it by Swing. Eq. 3
prints the minimum of that similarity, and its text says "most closely associated": here it is the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from service.contract.field import PAD
from training import swing
from training.nn.interactions import mlp

META = (64, 16)
"""Hidden layers of the meta network (section 5.1)."""
_DIM = 16
"""Of a static feature's embedding."""


@dataclass(frozen=True)
class Scenarios:
    """What is known of D domains from their training rows."""

    features: npt.NDArray[np.int64]
    """(D, m): each column's values are 0, 1, ...."""
    similar: npt.NDArray[np.float32]
    """(D, D): a domain's row has 1 / G at the G domains most like it, so IR = similar @ ER."""

    @classmethod
    def of(cls, train: pl.DataFrame, domains: Sequence[str], G: int) -> Scenarios:
        """Read them off.

        The features are the domain's name; how many rows, items and, where users are known, users it has, to
        the nearest power of two; and its share of positives, to the nearest twentieth.

        Args:
            train: rows with `domain`, `label`, `item.id` and, where users are known, `user.id`.
            domains: D names.
            G: how many similar domains count; those that share no user with one do not. Where all are such,
                all others count.
        """
        ids = [key for key in ("item.id", "user.id") if key in train.columns]
        found = (
            pl.DataFrame({"domain": domains})
            .join(
                train.group_by("domain").agg(
                    pl.len().log(2).round(),
                    *(pl.col(key).n_unique().log(2).round() for key in ids),
                    (pl.col("label").mean() * 20).round(),
                ),
                on="domain",
                how="left",
                maintain_order="left",
            )
            .select(pl.all().rank("dense") - 1)
        )
        similarity = np.zeros((len(domains), len(domains)))
        if "user.id" in ids:
            place = {domain: at for at, domain in enumerate(domains)}
            at = train["domain"].replace_strict(place, return_dtype=pl.Int64).to_numpy()
            similarity = swing.similarity(swing.visits(train["user.id"], at, len(domains)))
        return cls(found.fill_null(0).to_numpy().astype(np.int64), nearest(similarity, G))


def nearest(similarity: npt.NDArray[np.float64], G: int) -> npt.NDArray[np.float32]:
    """`Scenarios.similar` by a similarity (D, D) with 0 on the diagonal."""
    count = len(similarity)
    out = np.zeros((count, count), np.float32)
    for at, row in enumerate(similarity):
        best = np.argsort(-row, kind="stable")[:G]
        best = best[row[best] > 0]
        out[at, best if len(best) else np.arange(count) != at] = 1
    out /= np.maximum(out.sum(1, keepdims=True), 1)
    return out


class MetaPrompts(nn.Module):
    """SR -> 64 -> 16 -> P prompts of a language model's width (eq. 1, 3 and 4).

    They start as large as the vectors of tokens are.
    """

    features: Tensor
    similar: Tensor

    def __init__(self, scenarios: Scenarios, prompts: int, tokens: Tensor) -> None:
        super().__init__()
        width = tokens.shape[1]
        self.register_buffer("features", torch.from_numpy(scenarios.features), persistent=False)
        self.register_buffer("similar", torch.from_numpy(scenarios.similar), persistent=False)
        sizes = (scenarios.features.max(0) + 1).tolist()
        self.embeddings = nn.ModuleList(nn.Embedding(size, _DIM) for size in sizes)
        self.meta = mlp(2 * _DIM * len(sizes), META, prompts * width)
        self.shape = (prompts, width)
        with torch.no_grad():
            scale = tokens.std() / self().std()
            for parameter in self.meta[-1].parameters():
                parameter.mul_(scale)

    def represented(self) -> Tensor:
        """SR (D, 2 * 16 m)."""
        columns = zip(self.embeddings, self.features.T, strict=True)
        explicit = torch.cat([embedding(column) for embedding, column in columns], 1)
        return torch.cat([self.similar @ explicit, explicit], 1)

    def forward(self) -> Tensor:
        """(D, P, width)."""
        found: Tensor = self.meta(self.represented())
        return found.view(-1, *self.shape)


class LearnedPrompts(nn.Module):
    """The same P prompts for D domains, learned as they are: the paper's CSAMP-Meta."""

    def __init__(self, domains: int, prompts: int, tokens: Tensor) -> None:
        super().__init__()
        self.domains = domains
        self.each = nn.Parameter(torch.randn(prompts, tokens.shape[1]) * tokens.std())

    def forward(self) -> Tensor:
        """(D, P, width)."""
        return self.each.expand(self.domains, -1, -1)


class Reader(nn.Module):
    """A frozen language model that makes one vector of a text with prompts in front of it.

    That is the state of the last token where tokens see only what is before them, and the mean over the
    text's tokens else.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False).eval()
        self.width: int = cast("Any", model).config.hidden_size
        self.causal = self._causal()

    @property
    def tokens(self) -> Tensor:
        """The vectors of all tokens, (vocabulary, width)."""
        found: Tensor = self._embeddings.weight
        return found

    def forward(self, tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """Vectors of texts.

        Args:
            tokens: (n, J), PAD beyond a text's end.
            prompts: (n, P, width).

        Returns:
            (n, width).
        """
        present = tokens != PAD
        given, mask = self._embeddings(tokens.clamp(min=0).long()), present
        if prompts is not None:
            given = torch.cat([prompts.to(given.dtype), given], 1)
            mask = torch.cat([present.new_ones(prompts.shape[:2]), present], 1)
        hidden = self._read(given, mask)[:, -tokens.shape[1] :].float()
        if self.causal:
            last = (present.sum(1) - 1).clamp(min=0)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        return (hidden * present[:, :, None]).sum(1) / present.sum(1, keepdim=True).clamp(min=1)

    def train(self, mode: bool = True) -> Reader:
        """It never trains: no dropout."""
        del mode
        return super().train(mode=False)

    @property
    def _embeddings(self) -> nn.Embedding:
        return cast("nn.Embedding", cast("Any", self.model).get_input_embeddings())

    @torch.no_grad()
    def _causal(self) -> bool:
        """Whether the first token's state is the same whatever the last one is."""
        words = self.tokens[:4]
        mask = torch.ones(1, 2, dtype=torch.bool, device=words.device)
        one, other = (self._read(words[[0, last]][None], mask)[0, 0] for last in (1, 2))
        return math.isclose(float((one - other).abs().max()), 0, abs_tol=1e-6)

    def _read(self, given: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(inputs_embeds=given, attention_mask=mask.long()).last_hidden_state
        return hidden

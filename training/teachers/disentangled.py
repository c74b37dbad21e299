"""DeBERTa over texts of one length: the same numbers, without what depends on the length alone.

How far apart two tokens are (He et al. 2021, eq. 3) is known before any text is. So which of the relative
positions a query meets at a key is an index made once, and the positions' projections are tables. Attention
is one fused call with the positions' part as its bias, and nothing is copied from the CPU within a pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from service.contract.errors import RunError

_ALIGNED = 8
"""Tables are this many columns wide, or a multiple: tensor cores want rows that begin so."""


class Disentangled(nn.Module):
    """One layer's attention, for L tokens, N heads of d, and W positions that L tokens can be apart.

    `key_table` and `query_table` (N, d, W) are the positions' projections times `scale`; `key_index` and
    `query_index` (L * L) say which entry of a row-major (L, W) belongs at query i and key j, and the
    reverse.

    Args:
        attention: the library's, whose projections are used.
        positions: (P, width), embeddings of all relative positions as the layers read them.
        length: L.
    """

    key_table: Tensor
    query_table: Tensor
    key_index: Tensor
    query_index: Tensor

    def __init__(self, attention: Any, positions: Tensor, length: int) -> None:  # noqa: ANN401 - untyped
        super().__init__()
        self.query, self.key, self.value = (
            attention.query_proj,
            attention.key_proj,
            attention.value_proj,
        )
        self.heads = int(attention.num_attention_heads)
        shared = attention.share_att_key
        self.scale = 1 / math.sqrt(3 * attention.attention_head_size)
        span = int(attention.pos_ebd_size)
        of = torch.empty(length, 1)
        apart = build_relative_position(of, of, attention.position_buckets, attention.max_relative_positions)[
            0
        ]
        column = (apart + span).clamp(0, 2 * span - 1)
        mirrored = (span - apart).clamp(0, 2 * span - 1)
        first = int(torch.minimum(column.min(), mirrored.min()))
        width = int(torch.maximum(column.max(), mirrored.max())) + 1 - first
        width = min(-(-width // _ALIGNED) * _ALIGNED, 2 * span - first)
        rows = positions[first : first + width]
        tables = (
            self.key if shared else attention.pos_key_proj,
            self.query if shared else attention.pos_query_proj,
        )
        with torch.no_grad():
            for name, project in zip(("key_table", "query_table"), tables, strict=True):
                table = project(rows) * self.scale
                self.register_buffer(name, table.unflatten(1, (self.heads, -1)).permute(1, 2, 0).contiguous())
        offset = torch.arange(length)[:, None] * width - first
        for name, columns in (("key_index", column), ("query_index", mirrored)):
            self.register_buffer(name, (offset + columns).flatten().to(rows.device, torch.int32))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, width) to (B, L, width)."""
        query, key, value = (self._heads(each(hidden)) for each in (self.query, self.key, self.value))
        # Heads come before texts, so that a table meets all texts in one product.
        bias = self._met(query, self.key_table, self.key_index)
        bias = bias + self._met(key, self.query_table, self.query_index).transpose(2, 3)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return found.permute(1, 2, 0, 3).flatten(2)

    def _heads(self, hidden: Tensor) -> Tensor:
        """(B, L, width) to (N, B, L, d)."""
        B, L, width = hidden.shape
        return hidden.view(B, L, self.heads, width // self.heads).permute(2, 0, 1, 3)

    @staticmethod
    def _met(side: Tensor, table: Tensor, index: Tensor) -> Tensor:
        """(N, B, L, d), (N, d, W) and (L * L) to (N, B, L, L)."""
        N, B, L, _ = side.shape
        scores = side.flatten(1, 2) @ table
        return scores.view(N * B, -1).index_select(1, index).view(N, B, L, L)


class FixedDeberta(nn.Module):
    """A DeBERTa-v2 or -v3 for texts of `length` tokens without padding; it shares the model's weights.

    Raises:
        RunError: the model has parts that this one has not.
    """

    def __init__(self, model: Any, length: int) -> None:  # noqa: ANN401 - untyped
        super().__init__()
        config = model.config
        if (
            config.model_type != "deberta-v2"
            or not config.relative_attention
            or set(config.pos_att_type or []) != {"c2p", "p2c"}
            or getattr(config, "conv_kernel_size", 0) > 0
        ):
            raise RunError("only a DeBERTa-v2 with positions on both sides and without convolution is known")
        self.embeddings, self.layers = model.embeddings, model.encoder.layer
        with torch.no_grad():
            positions = model.encoder.get_rel_embedding()
        self.attentions = nn.ModuleList(
            Disentangled(layer.attention.self, positions, length) for layer in self.layers
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) to the last layer (B, L, width)."""
        hidden: Tensor = self.embeddings(input_ids=tokens)
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            attended = layer.attention.output(attention(hidden), hidden)
            hidden = layer.output(layer.intermediate(attended), attended)
        return hidden

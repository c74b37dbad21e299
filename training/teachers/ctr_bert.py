"""CTR-BERT (Muhamed et al. 2021): a language model reads the item's text, and ids join what it makes of it.

Here it is shared bottom with one more field: the text's vector, projected, stands beside the embeddings in
the backbone, and a domain owns a tower. The language model is a part of what is exported and served, and
learns of clicks as far as it is not frozen. Of the paper's two towers the user's has no words: what is known
of users are features and histories, as ids.

A frozen language model reads each text once while it is trained, one at a time: so a vector has the same
bits whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from service.contract.errors import RunError
from service.contract.field import PAD
from service.contract.schema import FeatureSchema
from training import text
from training.nn.interactions import mlp
from training.nn.ranker import MakeBackbone
from training.paradigms._joint import Body
from training.paradigms._routed import Networks, Routed
from training.stages import Stage

Count = Annotated[int, Field(ge=1)]

_TOKENS = "item.tokens"


class Options(BaseModel):
    """The language model, and the towers' shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """A folder in Hugging Face's format, or `package:NAME`; or `tiny`, which has random weights."""
    layers: Count | None = None
    """Only its first so many layers."""
    unfrozen: Annotated[int, Field(ge=0)] = 0
    """So many of its last layers learn of clicks. With any, training wants a GPU."""
    tower: tuple[Count, ...] = (16,)
    """Hidden layers between the backbone and a domain's logit."""


class Texts(nn.Module):
    """Vectors of items' texts, which come as rows of a schema: the mean of the last layer's states."""

    def __init__(self, model: PreTrainedModel, first: int, *, frozen: bool) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False)
        self.width: int = model.config.hidden_size
        self._first = first
        self._known = _Known() if frozen else None

    def forward(self, rows: Tensor) -> Tensor:
        """(B, J) rows of the schema, PAD where there is no token, to (B, width); zeros for a row of none."""
        if torch.compiler.is_exporting():
            return self.read(rows)
        distinct, place = torch.unique(rows, dim=0, return_inverse=True)
        found = self.read(distinct) if self._known is None else self._known(self, distinct)
        return found[place]

    def read(self, rows: Tensor) -> Tensor:
        """The same by the language model, whatever is known."""
        there = rows != PAD
        # A text without any token is read as one of token 0: attention over nothing is no number.
        present = torch.cat([there[:, :1] | ~there.any(1, keepdim=True), there[:, 1:]], 1)
        hidden: Tensor = self.model(
            input_ids=(rows - self._first).clamp(min=0).long(),
            attention_mask=present.long(),
            position_ids=(present.long().cumsum(1) - 1).clamp(min=0),
        ).last_hidden_state
        return (hidden * there[:, :, None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)


class _Known:
    """What a frozen language model has made of texts; copies of a model share it."""

    def __init__(self) -> None:
        self._vectors: dict[tuple[torch.dtype, bytes], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> _Known:
        return self

    def __call__(self, texts: Texts, rows: Tensor) -> Tensor:
        """(n, J) to (n, width)."""
        keys = [(texts.model.dtype, row.tobytes()) for row in rows.cpu().numpy()]
        for at, key in enumerate(keys):
            if key not in self._vectors:
                self._vectors[key] = self._read(texts, rows[at : at + 1])
        found = [self._vectors[key] for key in keys]
        return torch.stack(found).to(rows.device) if found else texts.read(rows)

    # A later batch may train on what is read while nothing is trained.
    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _read(self, texts: Texts, row: Tensor) -> Tensor:
        """(1, J) to (width,), in the CPU's memory."""
        filled = row[:, (row != PAD)[0]] if (row != PAD).any() else row[:, :1]
        return texts.read(filled.clone())[0].cpu()


class Twin(Body[Networks]):
    """logit = L(x) + direct + tower_d(hidden), the text among the backbone's fields."""

    def __init__(self, schema: FeatureSchema, backbone: MakeBackbone, dim: int, texts: Texts) -> None:
        # The tokens are the last field, so the others stand where they would without it.
        super().__init__(FeatureSchema(fields=schema.fields[:-1]), dim)
        self._ids = schema.slots[_TOKENS].at.start
        self.texts = texts
        self.text = nn.Sequential(nn.LayerNorm(texts.width), nn.Linear(texts.width, dim))
        for parameter in self.text[1].parameters():
            nn.init.zeros_(parameter)  # as if there were no text, so that it disturbs nothing at the start
        self.backbone = backbone(self.fields[0], self.fields[1] + 1)

    def forward(self, arrays: tuple[Tensor, Tensor, Tensor, Tensor], own: Networks) -> Tensor:
        """Logits (B,)."""
        request_ids, request_numbers, item_ids, item_numbers = arrays
        ids = (request_ids, request_numbers, item_ids[:, : self._ids], item_numbers)
        request, item = self.embedding(*ids)
        first_order: Tensor = self.first_order(*ids)
        words = self.text(self.texts(item_ids[:, self._ids :]))
        return first_order + self.interact(request, torch.cat([item, words[:, None]], 1), own)

    def interact(self, request: Tensor, item: Tensor, own: Networks) -> Tensor:
        """(R, F_q, K) and (B, F_i + 1, K) to (B,)."""
        hidden, direct = self.backbone(request, item)
        logit: Tensor = direct + own["tower"](hidden)[:, 0]
        return logit


class CTRBert(Routed):
    """Everything is trained at once, but for what is frozen of the language model."""

    body: Twin

    most_rows = 512

    def __init__(self, body: Twin, networks: nn.ModuleDict, domains: int, learning: Sequence[int]) -> None:
        super().__init__(body, networks, domains)
        self._learning = [f".{at}." for at in learning]

    def stages(self) -> Sequence[Stage]:
        """One."""
        trained = (name for name, _ in self.named_parameters() if self._trained(name))
        return (Stage("joint", "all domains", frozenset(trained)),)

    def _trained(self, name: str) -> bool:
        if not name.startswith("body.texts."):
            return True
        return ".layer" in name and any(at in name for at in self._learning)


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> CTRBert:
    """CTR-BERT over any backbone.

    Raises:
        RunError: the data has no tokens, or there is no such language model.
    """
    if schema.fields[-1].key != _TOKENS:
        raise RunError("ctr-bert reads items' texts: its data must be the source `text_tokens`")
    slot = schema.slots[_TOKENS]
    model = text.language_model(options.model, len(slot.field.values), layers=options.layers)
    layers = model.config.num_hidden_layers
    texts = Texts(model, slot.offset + 1, frozen=not options.unfrozen)
    body = Twin(schema, backbone, dim, texts)
    tower = mlp(body.backbone.width, options.tower, 1)
    learning = range(layers - min(options.unfrozen, layers), layers)
    return CTRBert(body, nn.ModuleDict({"tower": tower}), domains, learning)

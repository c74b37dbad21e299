"""`Ranker`: one domain's network: E, L, prompts, a backbone and its head (PLATE, section 2.2)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.backbones._protocol import Backbone
from training.data.batches import Arrays
from training.nn.embedding import Embedding, FirstOrder


class MakeBackbone(Protocol):
    """Makes the chosen backbone for so many fields."""

    def __call__(self, request: int, item: int) -> Backbone:
        """One over `request` and `item` fields."""
        ...


class MakePrompt(Protocol):
    """Makes a user prompt for a profile so wide."""

    def __call__(self, profile: int) -> nn.Module:
        """A module from (R, profile) to (R, K)."""
        ...


class Ranker(nn.Module):
    """logit = L(x) + backbone([P_domain | P_user | e_request], e_item), the latter through a head.

    Prompts are two more fields in front of the request's (eq. 3 and section 3.2), so they cost one row a
    request, and take part in the FM and the MLP like any field. Without prompts this is the plain model.

    Args:
        schema: the fields.
        backbone: makes the backbone.
        dim: K.
        domain_prompt: whether there is a vector for the domain.
        user_prompt: makes the user's prompt out of the embeddings of the user's own fields.
        correction: what a domain adds to the first-order part.
    """

    profile: Tensor
    """Positions of the user's own fields among the request's."""

    def __init__(
        self,
        schema: FeatureSchema,
        backbone: MakeBackbone,
        dim: int,
        *,
        domain_prompt: bool = False,
        user_prompt: MakePrompt | None = None,
        correction: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(schema, dim)
        self.first_order = FirstOrder(schema)
        request, item = self.embedding.request.keys, self.embedding.item.keys
        prompts = int(domain_prompt) + int(user_prompt is not None)
        self.backbone = backbone(len(request) + prompts, len(item))
        self.head = nn.Linear(self.backbone.width, 1)
        profile = torch.tensor([at for at, key in enumerate(request) if key.startswith("user.")])
        self.register_buffer("profile", profile, persistent=False)
        self.domain_prompt = nn.Parameter(torch.empty(1, dim)) if domain_prompt else None
        if self.domain_prompt is not None:
            nn.init.xavier_uniform_(self.domain_prompt)
        self.user_prompt = user_prompt(len(self.profile) * dim) if user_prompt else None
        self.correction = correction

    def forward(
        self, request_ids: Tensor, request_numbers: Tensor, item_ids: Tensor, item_numbers: Tensor
    ) -> Tensor:
        """Logits (B,) under this domain."""
        return self.score((request_ids, request_numbers, item_ids, item_numbers), self.domain_prompt)

    def score(self, arrays: Arrays, domain_prompt: Tensor | None) -> Tensor:
        """Logits (B,).

        Args:
            arrays: as encoded, the request's with R = 1 or B rows.
            domain_prompt: (1, K) for all rows, or (R, K); None if this ranker has none.
        """
        request, item = self.embedding(*arrays)
        first_order: Tensor = self.first_order(*arrays)
        if self.correction is not None:
            first_order = first_order + self.correction(arrays, request, item)
        prompts = []
        if domain_prompt is not None:
            prompts.append(domain_prompt.expand(len(request), -1))
        if self.user_prompt is not None:
            prompts.append(self.user_prompt(request.index_select(1, self.profile).flatten(1)))
        if prompts:
            request = torch.cat([torch.stack(prompts, 1), request], 1)
        hidden, direct = self.backbone(request, item)
        logit: Tensor = first_order + direct + self.head(hidden)[:, 0]
        return logit

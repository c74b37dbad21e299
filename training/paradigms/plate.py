"""PLATE (Wang et al., SIGIR 2023): prompts in front of the fields, tuned domain by domain.

Stage one trains everything on all domains' rows; stage two trains, for each domain on its own rows, only
the prompts P and the first-order part L (eq. 7). PTE, the paper's variant, leaves the prompts out of
stage one (eq. 8).

Where this departs from the published code, which differs from the paper: hidden layers of the user prompt
are not started at zero, the softmax has a temperature at which it learns, first-order weights start at 0,
frozen layers (BatchNorm's statistics included) do not move in stage two, and the pre-trained model is a
candidate when the best epoch is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.nn import corrections
from training.nn.prompts import Fusion, Generative
from training.nn.ranker import MakeBackbone, MakePrompt, Ranker
from training.paradigms._protocol import Pack, Paradigm, own_copy
from training.stages import Stage


class Options(BaseModel):
    """Which prompts, and what is trained when. The defaults are the paper's for Douban (Table 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain_prompt: bool = True
    user_prompt: Literal["fusion", "generative", "none"] = "fusion"
    prompt_hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (32, 32)
    meta_prompts: Annotated[int, Field(ge=1)] = 10
    """R, of the fusion prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the fusion prompt's softmax."""
    pretrain_prompts: bool = True
    """False is PTE: prompts are frozen in stage one."""
    tunes: Annotated[frozenset[Literal["prompts", "first_order"]], Field(min_length=1)] = frozenset(
        {"prompts", "first_order"}
    )
    """What stage two trains."""
    first_order: Literal["rows", "user", "hashed", "embedding"] = "rows"
    """The form of a domain's own first-order part: a weight for each row, as in the paper, or a correction
    of the shared part that does not grow with the items (`training.nn.corrections`)."""
    hash_size: Annotated[int, Field(ge=1)] = 1024
    """Buckets of the `hashed` form."""


class Plate(Paradigm):
    """A prompted ranker, with a prompt row and a bias for each domain.

    `general` is the one-domain form under the general pack.
    """

    def __init__(
        self, options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int
    ) -> None:
        super().__init__()
        self.options = options
        correction = None
        if "first_order" in options.tunes and options.first_order != "rows":
            correction = corrections.build(options.first_order, schema, dim, options.hash_size)
        self.general = Ranker(
            schema,
            backbone,
            dim,
            domain_prompt=options.domain_prompt,
            user_prompt=_user_prompt(options, dim),
            correction=correction,
        )
        self.domain_bias = nn.Parameter(torch.zeros(domains))
        self.domain_prompt = nn.Parameter(torch.empty(domains, dim)) if options.domain_prompt else None
        if self.domain_prompt is not None:
            nn.init.xavier_uniform_(self.domain_prompt)
        self.tuned = self._tuned()
        # The prompt row and the bias differ between domains whether or not they are tuned.
        self.owned = (
            self.tuned | {"first_order.bias"} | ({"domain_prompt"} if options.domain_prompt else set())
        )

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,); the row after the last domain's is the general one."""
        bias = torch.cat([self.domain_bias, self.domain_bias.new_zeros(1)])
        prompt = None
        if self.domain_prompt is not None and self.general.domain_prompt is not None:
            prompt = torch.cat([self.domain_prompt, self.general.domain_prompt])[rows.domain]
        return self.general.score(rows.arrays, prompt) + bias[rows.domain]

    def stages(self) -> Sequence[Stage]:
        """Pre-training over everything (PTE: but the prompts), then tuning."""
        names = {name for name, _ in self.named_parameters() if not name.startswith("general.correction.")}
        if not self.options.pretrain_prompts:
            names -= {name for name in names if _is_prompt(name.removeprefix("general."))}
        return (
            Stage("joint", "all domains", frozenset(names)),
            Stage("tuning", "each domain", self.tuned),
        )

    def servable(self) -> Ranker:
        """The general ranker, with its own copy of what a domain owns."""
        return own_copy(self.general, self.owned)

    def pack(self, domain: int | None) -> Pack:
        """The general pack's tensors, with the domain's prompt row and bias in place."""
        pack = {name: self.general.get_parameter(name).detach().clone() for name in self.owned}
        if domain is not None:
            pack["first_order.bias"] += self.domain_bias[domain].detach()
            if self.domain_prompt is not None:
                pack["domain_prompt"] = self.domain_prompt[domain].detach()[None].clone()
        return pack

    def _tuned(self) -> frozenset[str]:
        names = {name for name, _ in self.general.named_parameters()}
        tuned = set()
        if "prompts" in self.options.tunes:
            tuned |= {name for name in names if _is_prompt(name)}
        if "first_order" in self.options.tunes:
            correction = {name for name in names if name.startswith("correction.")}
            tuned |= {"first_order.bias", *(correction or {"first_order.weight"})}
        return frozenset(tuned)


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> Plate:
    """PLATE over any backbone."""
    return Plate(options, schema, backbone, dim, domains)


def _is_prompt(name: str) -> bool:
    return name == "domain_prompt" or name.startswith("user_prompt.")


def _user_prompt(options: Options, dim: int) -> MakePrompt | None:
    if options.user_prompt == "none":
        return None
    if options.user_prompt == "generative":
        return partial(Generative, dim=dim, hidden=options.prompt_hidden)
    return partial(
        Fusion,
        dim=dim,
        hidden=options.prompt_hidden,
        prompts=options.meta_prompts,
        temperature=options.temperature,
    )

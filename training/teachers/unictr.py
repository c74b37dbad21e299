"""Uni-CTR (Fu et al. 2023): a language model that reads a prompt, and a pluggable network for each domain.

A prompt says who asks and what is offered (`training.data.sources.prompts`). The language model, adapted
by LoRA, is shared; each domain has ladders, a gate and a tower of its own, and so has the general domain,
which answers for domains that training has not seen. A row's loss is that of its own domain's network plus
that of the general one (eq. 15): recipes set `general_share: 1`.

What differs from the published code: ladders attend over tokens, padding is masked, there is no BatchNorm,
and a row passes through its own domain's network only. Ladders start at layer phi, as eq. 10 has it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from service.contract.errors import RunError
from service.contract.field import PAD
from service.contract.schema import FeatureSchema
from training import text
from training.data.batches import Rows
from training.nn.ladders import DomainNetwork
from training.nn.ranker import MakeBackbone
from training.paradigms._protocol import Pack, Paradigm
from training.stages import Stage

Count = Annotated[int, Field(ge=1)]

_TEXTS = ["context.tokens", "item.tokens"]
_WINDOW = 64
"""Batches among which texts of one length are gathered."""


class Options(BaseModel):
    """The language model, how it is adapted, and the shape of a domain's network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """A folder in Hugging Face's format, or `package:NAME`; or `tiny` (`training.text`)."""
    pretrained: bool = True
    """False starts the language model at random and trains all of it, as `tiny` always is."""
    rank: Annotated[int, Field(ge=0)] = 8
    """r of LoRA, on every linear layer; 0 leaves the language model as it is."""
    alpha: Annotated[float, Field(gt=0)] = 32
    unfrozen: Annotated[int, Field(ge=0)] = 0
    """So many of its last layers are trained whole."""
    layers: Count | None = None
    """Only its first so many layers."""
    every: Count = 2
    """phi: a ladder at every so many layers."""
    ladder: bool = True
    reduce: Count = 4
    heads: Count = 2
    tower: Annotated[tuple[Count, ...], Field(min_length=1)] = (512, 256, 128)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Reader(nn.Module):
    """A language model over a prompt in two parts, which come as rows of a schema.

    The request's part says who asks and where, the item's what is offered; the model reads them as one text.
    """

    def __init__(self, schema: FeatureSchema, model: nn.Module, every: int | None) -> None:
        super().__init__()
        self.model = model
        self._first = [schema.slots[key].offset + 1 for key in _TEXTS]
        self._every = every

    def forward(self, request: Tensor, item: Tensor) -> tuple[list[Tensor], Tensor]:
        """Rows of the schema, (R, J_q) with R = 1 or B and (B, J_i), PAD beyond a text's end.

        Returns:
            Layers (B, J, width): those that ladders read, h_phi, h_2phi, ..., then the last one. And which
            of the J tokens are no padding, (B, J). J is the longest prompt's; in a graph J_q + J_i.
        """
        hidden, present = self.hidden(request, item)
        layers = [*hidden[self._every :: self._every]] if self._every else []
        return [*layers, hidden[-1]], present

    def hidden(self, request: Tensor, item: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """The same with all layers, the embeddings h_0 first."""
        parts = (request.expand(item.shape[0], -1), item)
        present = torch.cat([part != PAD for part in parts], 1)
        # A prompt without any token is read as one of token 0: attention over nothing is no number.
        present = torch.cat([present[:, :1] | ~present.any(1, keepdim=True), present[:, 1:]], 1)
        pairs = zip(parts, self._first, strict=True)
        ids = torch.cat([(part - first).clamp(min=0) for part, first in pairs], 1).long()
        if not torch.compiler.is_exporting():
            ids, present = _close(ids, present)
        position = (present.long().cumsum(1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": present.long(), "position_ids": position}
        found = _reduced(self.model, output_hidden_states=True, **given)
        return found.hidden_states, present


def _reduced(module: nn.Module, *arrays: object, **named: object) -> Any:  # noqa: ANN401 - what the module gives
    """A module in the type of the autocast around it, with all of its weights and all that it passes on.

    Autocast alone keeps sums and normalisations float32, and moves twice the bytes; kernels of a type of 16
    bits add up in float32 within.
    """
    at = next(module.parameters()).device.type
    if not torch.is_autocast_enabled(at):
        return module(*arrays, **named)
    dtype = torch.get_autocast_dtype(at)
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    with torch.autocast(at, enabled=False):
        return torch.func.functional_call(module, tensors, arrays, named)


def _close(ids: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Without the gap between the parts, cut to the longest prompt."""
    longest = max(int(present.sum(1).max()), 1)
    order = present.logical_not().byte().argsort(dim=1, stable=True)[:, :longest]
    return ids.gather(1, order), present.gather(1, order)


class OneDomain(nn.Module):
    """The one-domain form: the language model and one domain's network."""

    def __init__(self, reader: Reader, network: DomainNetwork) -> None:
        super().__init__()
        self.reader, self.network = reader, network

    def forward(
        self, request_ids: Tensor, request_numbers: Tensor, item_ids: Tensor, item_numbers: Tensor
    ) -> Tensor:
        """Logits (B,) of prompts (R, J_q), R = 1 or B, and (B, J_i)."""
        del request_numbers, item_numbers
        logits: Tensor = self.network(*self.reader(request_ids, item_ids))[0]
        return logits


class UniCTR(Paradigm):
    """One language model, D networks and the general one."""

    most_rows = 512

    def __init__(self, options: Options, schema: FeatureSchema, domains: int) -> None:
        super().__init__()
        if [field.key for field in schema.fields] != _TEXTS:
            raise RunError("uni-ctr reads prompts: its data must be the source `prompts`")
        self.options = options
        words = len(schema.slots["item.tokens"].field.values)
        whole = options.model == "tiny" or not options.pretrained
        model = text.language_model(
            options.model, words, pretrained=options.pretrained, layers=options.layers
        )
        width, layers = model.config.hidden_size, model.config.num_hidden_layers
        rungs = layers // options.every if options.ladder else 0
        if options.ladder and not rungs:
            raise RunError(f"a ladder at every {options.every} layers of a language model that has {layers}")
        self.reader = Reader(schema, model, options.every if options.ladder else None)
        self.networks = nn.ModuleList(
            DomainNetwork(
                width,
                rungs=rungs,
                reduce=options.reduce,
                heads=options.heads,
                tower=options.tower,
                dropout=options.dropout,
            )
            for _ in range(domains + 1)
        )
        self.owned = frozenset(f"network.{name}" for name, _ in self.networks[0].named_parameters())
        self._layers = layers
        self._whole = whole
        if options.rank and not whole:
            config = LoraConfig(
                r=options.rank,
                lora_alpha=int(options.alpha),
                lora_dropout=options.dropout,
                target_modules="all-linear",
            )
            with warnings.catch_warnings():
                # peft reads an attribute that transformers has deprecated.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                self.reader.model = get_peft_model(model, config)

    def forward(self, rows: Rows) -> Tensor:
        """Logits (B,) of rows, each by its own domain's network alone."""
        return self.read(rows)[0]

    def read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Logits (B,) and representations R (B, width)."""
        layers, present = self.reader(rows.request_ids, rows.item_ids)
        return self._by_domain(layers, present, rows.domain)

    def both(self, rows: Rows, part: Rows) -> Tensor:
        """The same, and the general network's, with one pass through the language model."""
        layers, present = self.reader(rows.request_ids, rows.item_ids)
        own = self._by_domain(layers, present, rows.domain)[0]
        first = [layer[: len(part)] for layer in layers]
        return torch.cat([own, self._by_domain(first, present[: len(part)], part.domain)[0]])

    def batches(self, rows: Rows, size: int, seed: int) -> Iterator[Rows]:
        """Batches of mostly one domain, with prompts of about one length, in any order.

        So little is spent on padding, and on the many small networks of the other domains.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(rows), generator=generator)
        alike, window = self._alike(rows)[order], size * _WINDOW
        pieces = []
        for start in range(0, len(order), window):
            part = slice(start, start + window)
            pieces += [*torch.split(order[part][alike[part].argsort(stable=True)], size)]
        for at in torch.randperm(len(pieces), generator=generator).tolist():
            yield rows.ordered(pieces[at].to(rows.label.device))

    def alike(self, rows: Rows) -> Tensor:
        """By domain, then by length."""
        return self._alike(rows).argsort(stable=True)

    def stages(self) -> Sequence[Stage]:
        """One: LoRA, or the layers that are not frozen, and every network."""
        return (
            Stage("joint", "all domains", frozenset(filter(self._trained, dict(self.named_parameters())))),
        )

    def servable(self) -> OneDomain:
        """The language model, LoRA merged into it, with the general domain's network.

        Unlike other paradigms' it has a copy of the body: merging changes weights.
        """
        reader = copy.deepcopy(self.reader)
        if isinstance(reader.model, PeftModel):
            reader.model = reader.model.merge_and_unload()
        general = self.networks[-1]
        assert isinstance(general, DomainNetwork)  # noqa: S101 - a ModuleList does not know what is in it
        return OneDomain(reader, copy.deepcopy(general)).requires_grad_(requires_grad=True)

    def pack(self, domain: int | None) -> Pack:
        """The domain's network; the last one is the general domain's."""
        network = self.networks[-1 if domain is None else domain]
        return {f"network.{name}": each.detach().clone() for name, each in network.named_parameters()}

    def _alike(self, rows: Rows) -> Tensor:
        """(B,) a number for each row's domain and how many tokens it has."""
        length = (rows.request_ids != PAD).sum(1) + (rows.item_ids != PAD).sum(1)
        widest = rows.request_ids.shape[1] + rows.item_ids.shape[1] + 1
        return (rows.domain * widest + length).cpu()

    def _by_domain(self, layers: Sequence[Tensor], present: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor | None = None
        found: Tensor | None = None
        domains = torch.unique(domain).tolist()
        if len(domains) == 1:  # most batches, and all of the general network's
            alone: tuple[Tensor, Tensor] = _reduced(self.networks[domains[0]], layers, present)
            return alone
        for at in domains:
            mine = (domain == at).nonzero()[:, 0]
            each = [layer.index_select(0, mine) for layer in layers]
            logit, representation = _reduced(self.networks[at], each, present.index_select(0, mine))
            if logits is None or found is None:
                logits = logit.new_zeros(len(domain))
                found = representation.new_zeros(len(domain), representation.shape[1])
            logits = logits.index_copy(0, mine, logit)
            found = found.index_copy(0, mine, representation)
        if logits is None or found is None:
            return layers[-1].new_zeros(0), layers[-1].new_zeros(0, layers[-1].shape[-1])
        return logits, found

    def _trained(self, name: str) -> bool:
        if name.startswith("networks.") or ".lora_" in name or self._whole:
            return ".pooler." not in name
        last = range(self._layers - self.options.unfrozen, self._layers)
        return any(f".{at}." in name for at in last) and ".layer" in name and ".lora_" not in name


def build(options: Options, schema: FeatureSchema, backbone: MakeBackbone, dim: int, domains: int) -> UniCTR:
    """Uni-CTR; it has no backbone but its language model, and no embeddings of `dim`."""
    del backbone, dim
    return UniCTR(options, schema, domains)

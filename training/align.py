"""Alignment: a model's rows come to stand where a language model puts their items' texts (CSAMP; CTRL).

It is a stage before a paradigm's own: what those train first, this trains, by the contrast of rows and texts
alone, without labels. A row's representation is what the last layer of its own network reads, the hidden
units of its domain's tower or else of the backbone, projected to the language model's width. The projection,
the prompts and the language model are gone when the stage is over: what is saved, exported and served is the
paradigm.

A text is read with its domain's prompts, which learn. So all texts are read when an epoch begins, and of a
few rows of each batch they are read anew, with gradients for the prompts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

from service.contract.errors import RunError
from service.contract.field import PAD
from training import text
from training.data.batches import Rows
from training.data.prepare import Prepared
from training.data.sources._wrapped import words
from training.loop import Pass
from training.losses import aligned, neighbours
from training.paradigms._protocol import Paradigm
from training.recipe import Align, Recipe
from training.stages import ALIGN
from training.teachers.samp import LearnedPrompts, MetaPrompts, Reader, Scenarios

_LAST = ("tower", "out", "head")
"""What paradigms call that which makes a logit of hidden units."""
_BATCH = 64
"""Texts that are read at once."""


def aligning(
    recipe: Recipe, prepared: Prepared, paradigm: Paradigm, *, train: Rows, valid: Rows, device: torch.device
) -> Pass:
    """The stage, ready to run.

    Args:
        recipe: with `align`.
        prepared: the data.
        paradigm: moves in the stage.
        train: the training rows.
        valid: the validation rows.
        device: where the paradigm is.

    Raises:
        RunError: the data has no texts, there is no such language model, or rows have no representation.
    """
    options = recipe.align or Align()
    texts = Texts.of(prepared, options)
    rows = texts.given(train, prepared.split("train")).to(device)
    judged = texts.given(valid, prepared.split("valid")).to(device)
    module = Alignment(paradigm, prepared, texts, recipe).to(device)
    trains = frozenset(f"paradigm.{name}" for name in paradigm.stages()[0].trains) | module.own
    return Pass(ALIGN, module, trains, options, rows, module.loss, partial(module.score, judged))


@dataclass(frozen=True)
class Texts:
    """The texts that training rows have, each once for every domain that it occurs in: T of them."""

    reader: Reader
    tokens: Tensor
    """(T, J) int32, PAD beyond a text's end."""
    words: Tensor
    """(T,) which of the items' distinct texts it is."""
    domain: Tensor
    """(T,)"""
    known: pl.DataFrame
    """Of each item in each domain: `item.id`, `domain`, and `at`, a position here."""

    @classmethod
    def of(cls, prepared: Prepared, options: Align) -> Texts:
        """Read them, and the model's folder.

        Raises:
            RunError: there are no texts, or no such model.
        """
        items = prepared.items()
        items = items.select("item.id", words(items)).drop_nulls()
        if items.is_empty():
            raise RunError("align: the data's items have no texts")
        distinct = items.select("words").unique(maintain_order=True).with_row_index("text")
        pairs = (
            prepared.split("train")
            .select("domain", "item.id")
            .unique(maintain_order=True)
            .join(items.join(distinct, on="words"), on="item.id", maintain_order="left")
        )
        each = pairs.select("text", "domain").unique(maintain_order=True).with_row_index("at")
        if each.is_empty():
            raise RunError("align: no training row's item has a text")
        places = {domain: at for at, domain in enumerate(prepared.domains)}
        domain = each["domain"].replace_strict(places, return_dtype=pl.Int64)
        reader, tokens = _read(options, distinct["words"].to_list())
        word = torch.tensor(each["text"].to_list())
        known = pairs.join(each, on=["text", "domain"]).select("item.id", "domain", "at")
        return cls(reader, tokens[word], word, torch.tensor(domain.to_list()), known)

    def given(self, rows: Rows, frame: pl.DataFrame) -> Rows:
        """Those of n rows that have a text here, with its position."""
        place = (
            frame.select("item.id", "domain")
            .join(self.known, on=["item.id", "domain"], how="left", maintain_order="left")
            .select(pl.col("at").cast(pl.Int64).fill_null(-1))
        )
        at = torch.tensor(place["at"].to_numpy())
        return replace(rows, text=at)[at >= 0]


class Alignment(nn.Module):
    """A paradigm while it is aligned."""

    cache: Tensor
    """(T, width): what the language model made of each text when the epoch began."""
    tokens: Tensor
    words: Tensor
    domain: Tensor

    def __init__(self, paradigm: Paradigm, prepared: Prepared, texts: Texts, recipe: Recipe) -> None:
        super().__init__()
        self.paradigm, self.reader, self.options = paradigm, texts.reader, recipe.align or Align()
        self.general, self.share = len(prepared.domains), recipe.general_share
        self.heads = heads(paradigm, self.general)
        self.projection = nn.Linear(self.heads[0].in_features, self.reader.width)
        self.prompts: nn.Module | None = None
        if self.options.prompts == "scenario":
            scenarios = Scenarios.of(prepared.split("train"), prepared.domains, self.options.G)
            self.prompts = MetaPrompts(scenarios, self.options.n_prompts, self.reader.tokens)
        elif self.options.prompts == "learned":
            self.prompts = LearnedPrompts(self.general, self.options.n_prompts, self.reader.tokens)
        for name in ("tokens", "words", "domain"):
            self.register_buffer(name, getattr(texts, name), persistent=False)
        # Saved with a stage that is not over: a run that goes on within an epoch cannot read it anew.
        self.register_buffer("cache", torch.zeros(len(texts.words), self.reader.width))

    @property
    def own(self) -> set[str]:
        """Names of the parameters that move and are not the paradigm's."""
        return {name for name, _ in self.named_parameters() if not name.startswith(("paradigm.", "reader."))}

    def loss(self, rows: Rows) -> Tensor:
        """The contrast of B rows, and of a share of them under the general domain, with their texts.

        Rows whose items have one text are no negatives of each other.
        """
        part = rows[: round(self.share * len(rows))].under(self.general)
        ids = self.projection(self._hidden(rows, part))
        both = rows.joined(part).text
        assert both is not None  # noqa: S101 - rows of this stage have texts
        each, place = torch.unique(both, return_inverse=True)
        texts = self.cache[each]
        if self.prompts is not None and torch.is_grad_enabled():
            live = torch.unique(place[: self.options.live])
            texts = texts.index_copy(0, live, self._texts(each[live]))
        word = self.words[each][place]
        positive = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        if self.options.loss != "ctrl":
            positive |= neighbours(texts, self.domain[each], self.options.k)[place][:, place]
        return aligned(ids, texts[place], positive, word[:, None] != word, self.options)

    @torch.no_grad()
    def score(self, rows: Rows) -> float:
        """Minus the mean loss of some rows, all texts read anew; not a number without rows."""
        self.eval()
        if self.prompts is not None or not self.cache.any():
            self._refresh()
        parts = [(self.loss(part), len(part)) for part in rows.shuffled(0).batches(self.options.batch)]
        return -sum(float(loss) * size for loss, size in parts) / len(rows) if parts else float("nan")

    def _hidden(self, rows: Rows, part: Rows) -> Tensor:
        """(B + n, H): what the last layer of each row's own network reads."""
        found: dict[int, Tensor] = {}

        def keep(at: int, module: nn.Module, given: tuple[Tensor]) -> None:
            del module
            found[at] = given[0]

        hooks = [head.register_forward_pre_hook(partial(keep, at)) for at, head in enumerate(self.heads)]
        try:
            self.paradigm.both(rows, part)
        finally:
            for hook in hooks:
                hook.remove()
        if len(self.heads) == 1:
            return found[0]
        # Each domain's network has had its own rows, in the batch's order.
        order = torch.argsort(torch.cat([rows.domain, part.domain]), stable=True)
        return torch.cat([found[at] for at in sorted(found)]).index_select(0, torch.argsort(order))

    def _texts(self, at: Tensor) -> Tensor:
        """(n, width) what the language model makes of texts at these positions."""
        tokens = self.tokens[at]
        tokens = tokens[:, : int((tokens != PAD).sum(1).max())]
        prompts = None if self.prompts is None else self.prompts()[self.domain[at]]
        found: Tensor = self.reader(tokens, prompts)
        return found

    def _refresh(self) -> None:
        order = (self.tokens != PAD).sum(1).argsort(stable=True)
        for at in torch.split(order, _BATCH):
            self.cache[at] = self._texts(at)


def heads(paradigm: Paradigm, domains: int) -> Sequence[nn.Linear]:
    """The layers that make logits of hidden units: one for all rows, or one for each domain and the general.

    They are the last ones of towers, the one on the network that domains modulate, or the head on the
    backbone: the first of these that the paradigm has.

    Raises:
        RunError: it has none, or too many.
    """
    named = [(name.rpartition(".")[2], module) for name, module in paradigm.named_modules()]
    last = next(filter(None, ([each for at, each in named if at == name] for name in _LAST)), [])
    found = [each[-1] if isinstance(each, nn.Sequential) else each for each in last]
    if len(found) not in {1, domains + 1}:
        raise RunError(
            f"align: a row's representation is what its tower, or the head on its backbone, reads, and "
            f"this paradigm has {len(found)} of them for {domains} domains"
        )
    return [each for each in found if isinstance(each, nn.Linear)]


def _read(options: Align, words: list[str]) -> tuple[Reader, Tensor]:
    """The model, and the tokens (n, J) of texts; a tiny one is made of these, and thrown away."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        if options.model == "tiny":
            text.tiny(path, words)
        else:
            path = text.folder(options.model)
        model = text.language_model(str(path), 0)
        most = getattr(model.config, "max_position_embeddings", None) or options.length + options.n_prompts
        tokens = text.tokenise(path, words, min(options.length, most - options.n_prompts))
    return Reader(model), torch.from_numpy(tokens)

"""The rows of another source as tokens of a language model: who asks and what is offered, after Uni-CTR.

Rows, their order, and all that a row is judged by are the wrapped source's, so row numbers agree. A model
reads a prompt in two parts: `context.tokens`, the sentence about domain and user, is a request's, and
`item.tokens`, the one about the product, an item's. So the table of items holds every product's tokens, and
a request to a served model brings one list of tokens and ids.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field as Constraint

from service.contract.field import PAD, Field, Owner
from training import text
from training.data.sources._lists import lists
from training.data.sources._protocol import Interactions, Source
from training.data.sources._published import Checked
from training.data.sources._wrapped import Wrapped, Wrapping

_KEPT = ("domain", "label", "split", "time", "probability", "user.id", "item.id")
_WORDS = 2_000
"""Rows whose prompts a tiny model's words are taken from."""


class Options(Wrapping):
    """What is read, and how much of it is put into words."""

    length: Annotated[int, Constraint(ge=8, le=1000)] = 96
    """Tokens about the asker, at most."""
    item_length: Annotated[int, Constraint(ge=8, le=1000)] = 64
    """Tokens about the product, at most."""
    parts: text.Parts = "full"
    """Domain and ids alone, with the product's name, or all that is known."""
    history: Annotated[int, Constraint(ge=1)] = 5
    """At most so many names of what the user clicked last."""


def open(options: Options) -> Prompts:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return Prompts(options)


class Prompts(Checked):
    """A source in words."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._wrapped = Wrapped(options, self._some, text.checksum_of_tokenizer)
        super().__init__(self._wrapped)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Tokens of the request and of the item; in each field token t has row t + 1."""
        values = tuple(range(text.vocabulary(self._wrapped.model)))
        lengths: dict[Owner, int] = {"context": self._options.length, "item": self._options.item_length}
        request, item = (
            Field(name="tokens", owner=owner, kind="vocabulary", dtype="int", multiple=length, values=values)
            for owner, length in lengths.items()
        )
        return request, item

    def interactions(self) -> Interactions:
        """The wrapped source's rows.

        Raises:
            RunError: data or model are not there, or not what they should be.
        """
        given = self._wrapped.given
        kept = [key for key in _KEPT if key in given.frame.columns]
        askers = self._askers(self._wrapped.source, given.frame, self._wrapped.items)
        tokens = text.tokenise(self._wrapped.model, askers, self._options.length, ends=False)
        frame = given.frame.select(kept).with_columns(_listed(tokens).alias("context.tokens"))
        most = self._options.length + self._options.item_length
        protocol = f"{given.protocol}; as prompts ({self._options.parts}) of at most {most} tokens"
        return Interactions(frame, protocol, given.dropped)

    def items(self) -> pl.DataFrame:
        """The wrapped source's items, each with its words and the tokens of its part of a prompt."""
        items = self._wrapped.items
        words = [name for name in ("name", "text") if name in items.columns]
        texts = text.products(items, self._options.parts)
        tokens = text.tokenise(self._wrapped.model, texts, self._options.item_length, begins=False)
        return items.select("item.id", *words, _listed(tokens).alias("item.tokens"))

    def _askers(self, source: Source, frame: pl.DataFrame, items: pl.DataFrame) -> list[str]:
        return text.askers(frame, items, source.fields, self._options.parts, self._options.history)

    def _some(self, source: Source, given: Interactions, items: pl.DataFrame) -> list[str]:
        """Words for a tiny model."""
        askers = self._askers(source, given.frame.head(_WORDS), items)
        return [*text.products(items, self._options.parts), *askers]


def _listed(tokens: npt.NDArray[np.int32]) -> pl.Series:
    return lists(tokens.astype(np.int64), tokens != PAD)

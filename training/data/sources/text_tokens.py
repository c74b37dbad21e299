"""Another source, with the tokens of each item's text as one more field, `item.tokens`.

It is for models with a language model within (`training.teachers.ctr_bert`); to any other the tokens would be
words without an order.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field as Constraint

from service.contract.field import PAD, Field
from training import text
from training.data.sources._lists import lists
from training.data.sources._protocol import Interactions
from training.data.sources._published import Checked
from training.data.sources._wrapped import Wrapped, Wrapping, texts, words


class Options(Wrapping):
    """What is read, and how much of a text."""

    length: Annotated[int, Constraint(ge=8, le=1000)] = 64
    """Tokens of a text, at most."""


def open(options: Options) -> TextTokens:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return TextTokens(options)


class TextTokens(Checked):
    """A source whose items have tokens."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._wrapped = Wrapped(options, texts, text.checksum_of_tokenizer)
        super().__init__(self._wrapped)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The wrapped source's, and behind them `item.tokens`, where token t has row t + 1."""
        tokens = Field(
            name="tokens",
            owner="item",
            kind="vocabulary",
            dtype="int",
            multiple=self._options.length,
            values=tuple(range(text.vocabulary(self._wrapped.model))),
        )
        return *self._wrapped.source.fields, tokens

    def interactions(self) -> Interactions:
        """The wrapped source's rows.

        Raises:
            RunError: the data is not there, or not what it should be.
        """
        given = self._wrapped.given
        protocol = f"{given.protocol}; with at most {self._options.length} tokens of the items' texts"
        return Interactions(given.frame, protocol, given.dropped)

    def items(self) -> pl.DataFrame:
        """The wrapped source's items, with `item.tokens`; none for one without a text.

        Raises:
            RunError: the model's tokenizer is not there.
        """
        items = self._wrapped.items
        said = words(items)
        tokens = text.tokenise(self._wrapped.model, said.fill_null("").to_list(), self._options.length)
        known = (tokens != PAD) & said.is_not_null().to_numpy()[:, None]
        return items.with_columns(lists(tokens.astype(np.int64), known).alias("item.tokens"))

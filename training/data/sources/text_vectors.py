"""Another source, with what a language model makes of each item's text as one more field, `item.text`.

The model is frozen. Its vectors are brought to `size` numbers by their principal axes, which are fitted on
all items' texts, as the table of items is known before any row; no label has a part in it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import Field as Constraint

from service.contract.field import Field
from training import text
from training.data.sources._protocol import Interactions
from training.data.sources._published import Checked
from training.data.sources._wrapped import Wrapped, Wrapping, texts, words


class Options(Wrapping):
    """What is read, and how much is kept of it."""

    size: Annotated[int, Constraint(ge=1, le=1000)] = 32
    """Numbers of an item's vector."""


def open(options: Options) -> TextVectors:  # noqa: A001 - the name every source has
    """The source; nothing is read yet."""
    return TextVectors(options)


class TextVectors(Checked):
    """A source whose items have vectors."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._wrapped = Wrapped(options, texts, text.checksum)
        super().__init__(self._wrapped)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The wrapped source's, and `item.text`."""
        vector = Field(name="text", owner="item", kind="vector", size=self._options.size)
        return *self._wrapped.source.fields, vector

    @property
    def model(self) -> Path:
        """The language model's folder.

        Raises:
            RunError: there is no such model.
        """
        return self._wrapped.model

    def interactions(self) -> Interactions:
        """The wrapped source's rows.

        Raises:
            RunError: the data is not there, or not what it should be.
        """
        given = self._wrapped.given
        protocol = f"{given.protocol}; with vectors of {self._options.size} numbers of the items' texts"
        return Interactions(given.frame, protocol, given.dropped)

    def items(self) -> pl.DataFrame:
        """The wrapped source's items, with `item.text`; null for one without a text.

        Raises:
            RunError: the model is not there, or fewer items have a text than vectors have numbers.
        """
        return self._described

    @cached_property
    def _described(self) -> pl.DataFrame:
        items = self._wrapped.items.with_columns(words(self._wrapped.items).alias("words"))
        known = items.drop_nulls("words").select("words").unique(maintain_order=True)
        read = text.means(self._wrapped.model, known["words"].to_list())
        found = text.Axes.of(read, self._options.size).of_texts(read)
        vectors = pl.Series("item.text", found).cast(pl.List(pl.Float32))
        known = known.with_columns(vectors)
        return items.join(known, on="words", how="left", maintain_order="left").drop("words")

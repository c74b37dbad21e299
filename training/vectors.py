"""Vectors of texts that came after the data was prepared, on the axes that training had.

The axes are not kept: they follow from the texts of the prepared items, and the vectors that those have say
whether they were found again.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from service.contract.errors import RunError
from training import text
from training.data.prepare import Prepared
from training.data.sources import text_vectors
from training.data.sources._wrapped import words

_CLOSE = 1e-3
"""Of a number of a vector, whose mean square length is 1: another machine adds up in another order."""


def described(items: pl.DataFrame, prepared: Prepared) -> pl.DataFrame:
    """Items with `item.text`, the vector of their text, in the place of the text; null where there is none.

    Args:
        items: a row each, with the words that a vector is of in `text`, or else in `name`.
        prepared: data of the source `text_vectors`, whose language model is still there.

    Raises:
        RunError: the data is of another source, the items have no words, or the model or the texts are not
            those that the data's vectors were made of.
    """
    if prepared.about.source != "text_vectors":
        raise RunError(f"{prepared.path} is not of the source text_vectors")
    own = words(items).cast(pl.String)
    if own.null_count() == len(own):
        raise RunError("the items have no words, neither in `text` nor in `name`")
    options = text_vectors.Options.model_validate(prepared.about.options)
    trained = prepared.items()
    known = (
        trained.select(words(trained), vector="item.text").drop_nulls().unique("words", maintain_order=True)
    )
    model = text_vectors.open(options).model
    read = text.means(model, [*known["words"], *own.drop_nulls()])
    axes = text.Axes.of(read[: len(known)], options.size)
    found = axes.of_texts(read)
    if not np.allclose(found[: len(known)], np.array(known["vector"].to_list()), rtol=0, atol=_CLOSE):
        raise RunError(
            f"the axes that {prepared.path} has cannot be found again: its texts have other vectors now"
        )
    at = own.is_not_null().cum_sum().cast(pl.Int64) - 1
    new = found[len(known) :].tolist()
    vectors = [None if word is None else new[place] for word, place in zip(own, at, strict=True)]
    kept = items.drop("text", "name", strict=False)
    return kept.with_columns(pl.Series("item.text", vectors, pl.List(pl.Float32)))

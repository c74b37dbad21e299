"""`Tally`: what of many training rows a schema is fitted on, counted part by part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from service.contract.field import Column, Field
from service.contract.schema import FeatureSchema


class Moments:
    """Mean and deviation of numbers that come in parts (Chan et al. 1979, eq. 2.1)."""

    def __init__(self) -> None:
        self.n, self.mean, self.square = 0, 0.0, 0.0

    def add(self, numbers: pl.Series) -> None:
        """Some more of them, without the missing ones."""
        known = numbers.drop_nulls().cast(pl.Float64).to_numpy()
        if not len(known):
            return
        n, mean = self.n + len(known), float(known.mean())
        gap = mean - self.mean
        self.square += float(((known - mean) ** 2).sum()) + gap**2 * self.n * len(known) / n
        self.mean += gap * len(known) / n
        self.n = n

    @property
    def deviation(self) -> float:
        """Of all that were added; 0 without any."""
        return math.sqrt(self.square / self.n) if self.n else 0.0


class Tally:
    """Counts of the values of vocabularies, and moments of numbers.

    It holds each distinct value of a vocabulary field once, and nothing of the others. Vocabularies come to
    be exactly those of all rows at once, means and deviations the same but for rounding.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._counts: dict[str, Counter[Any]] = {
            field.key: Counter() for field in fields if field.kind == "vocabulary" and not field.values
        }
        self._moments = {field.key: Moments() for field in fields if field.kind == "number"}

    def add(self, rows: pl.DataFrame) -> None:
        """Count training rows, which have every field under its `Field.key`."""
        for field in self._fields:
            column = rows[field.key]
            if field.key in self._moments:
                self._moments[field.key].add(column)
            elif field.key in self._counts:
                values = column.explode(empty_as_null=True) if field.multiple else column
                found = values.drop_nulls().value_counts(name="rows")
                for value, n in zip(found[field.key].to_list(), found["rows"].to_list(), strict=True):
                    self._counts[field.key][value] += n

    def schema(self) -> FeatureSchema:
        """The schema of the rows counted.

        Raises:
            FieldError: a value is of the wrong type.
        """
        return FeatureSchema(fields=tuple(map(self._fitted, self._fields)))

    def _fitted(self, field: Field) -> Field:
        if field.key in self._moments:
            found = self._moments[field.key]
            return field.model_copy(update={"mean": found.mean, "std": found.deviation or 1.0})
        if field.key not in self._counts:
            return field.fit(())
        # The field keeps what it finds often enough: so it is shown each value as often, and no more often.
        kept = [value for value, n in self._counts[field.key].items() if n >= field.min_count]
        column: Column = [value for value in kept for _ in range(field.min_count)]
        return field.fit([column] if field.multiple else column)


def distinct(known: pl.Series | None, more: pl.Series) -> pl.Series:
    """The values of both, each once."""
    found = more.unique()
    return found if known is None else pl.concat([known, found]).unique()


def codes(column: pl.Series) -> tuple[pl.Series, np.ndarray[Any, np.dtype[np.int64]]]:
    """Its distinct values (u,), nulls among them, and where among these each of its n values stands (n,)."""
    frame = column.to_frame("value")
    values = frame.unique(maintain_order=True).with_row_index("at")
    at = frame.join(values, on="value", how="left", nulls_equal=True, maintain_order="left")["at"]
    return values["value"], at.cast(pl.Int64).to_numpy()

"""`Source`: raw interactions of one data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import polars as pl

from service.contract.field import Field


@dataclass(frozen=True)
class Interactions:
    """What happened, in columns.

    `frame` has `domain` (String), `label` (Int8, 0 or 1), every user and context field under its
    `Field.key`, and `item.id`. It may have `split` ('train', 'valid' or 'test'; without it the rows are
    split 80/10/10 by `time`), `time` (seconds), and `probability` (Float64: the true click probability,
    where it is known), and, of answers that were logged, `position` (Int64, from 0) and `propensity`
    (Float32: the chance of the arm that answered; null outside an experiment), and `grade` (Int64, from 0:
    the number that the label was cut from, null where it is not known; a second target, never a field). An
    item field stands here, too, where its value is the row's rather than the item's.
    """

    frame: pl.DataFrame
    protocol: str
    """What was done to the published data, in a sentence that a results table can print."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""


class Source(Protocol):
    """One data set.

    An option is a module with a pydantic model `Options` and `open(options: Options) -> Source`.
    """

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a model may read, not yet fitted."""
        ...

    def interactions(self) -> Interactions:
        """All rows, in the order of time where time is known.

        Raises:
            RunError: the data is not there, or not what its checksum says.
        """
        ...

    def items(self) -> pl.DataFrame:
        """Every item once: `item.id`, every item field under its `Field.key`.

        Where there are words: `name`, short, for an item in a history, and `text`, all that a language model
        is to read of it; both strings.
        """
        ...


@runtime_checkable
class InParts(Protocol):
    """A source of more rows than fit into memory: what else it has, beside what every source has.

    Its training rows are streamed from the disk, epoch by epoch (`training.data.stream`).
    """

    def parts(self) -> Iterator[Interactions]:
        """All rows, some at a time, each time with the same columns, of which one is `split`.

        A part is held in memory while it is prepared, and so are all rows of `valid` and `test`.

        Raises:
            RunError: the data is not there, or not what its checksum says.
        """
        ...

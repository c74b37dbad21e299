"""A source without one of its domains, or with nothing else, for `loadtest.bench_add_domain`.

The domain's rows are split as `export add-domain` splits them, so that all models are judged on the same
rows. Items stay as they are: an item of the domain's is known to everybody.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, JsonValue

from service.contract import plugins
from service.contract.errors import RunError
from service.contract.field import Field
from training import newcomer
from training.data.prepare import SPLITS, Checksummed, domain_name
from training.data.sources._protocol import Interactions, Source


class Options(BaseModel):
    """Which source, which domain, and which rows of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    options: dict[str, JsonValue] = {}
    """The source's."""
    domain: str
    keeps: Literal["others", "all", "domain"]
    """The rows of other domains, of all, or of this one alone."""


def open(options: Options) -> LeftOut:  # noqa: A001 - the name every source has
    """The source, and its split; nothing is read yet."""
    return LeftOut(options)


class LeftOut:
    """Some of a source's domains."""

    def __init__(self, options: Options) -> None:
        module = plugins.load("training.data.sources", options.source)
        self._source = cast("Source", module.open(module.Options.model_validate(options.options)))
        self._options = options

    @property
    def checksum(self) -> str | None:
        """The source's, if it reads a file."""
        return self._source.checksum if isinstance(self._source, Checksummed) else None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The source's."""
        return self._source.fields

    def interactions(self) -> Interactions:
        """The rows kept, with their split."""
        given, own = self._given, self._own
        kept = {"others": ~own, "all": np.ones(len(own), bool), "domain": own}[self._options.keeps]
        protocol = f"{given.protocol}; {self._options.domain}: split as `export add-domain` does"
        if self._options.keeps != "all":
            protocol += f", {'left out' if self._options.keeps == 'others' else 'alone'}"
        frame = given.frame.with_columns(split=pl.Series(self._splits())).filter(kept)
        return Interactions(frame, protocol, given.dropped)

    def items(self) -> pl.DataFrame:
        """All of the source's."""
        return self._source.items()

    def file(self) -> pl.DataFrame:
        """The domain's rows as a user of `export add-domain` would have them."""
        return self._given.frame.filter(self._own).drop("domain", "split", "probability", strict=False)

    @cached_property
    def _given(self) -> Interactions:
        return self._source.interactions()

    @cached_property
    def _own(self) -> npt.NDArray[np.bool_]:
        own = self._given.frame["domain"].map_elements(domain_name, pl.String) == self._options.domain
        if not own.any():
            names = ", ".join(sorted(self._given.frame["domain"].unique()))
            raise RunError(f"{self._options.source} has no domain {self._options.domain!r}; it has {names}")
        return own.to_numpy()

    def _splits(self) -> npt.NDArray[np.str_]:
        """(n,): the domain's rows split by time; the others' as their source does, or by time, too."""
        frame, own = self._given.frame, self._own
        splits = np.array(frame["split"]) if "split" in frame else np.full(frame.height, "", "U5")
        time = frame["time"].to_numpy().astype(np.float64)
        for part in (own,) if "split" in frame else (own, ~own):
            rows = np.flatnonzero(part)
            for name, places in zip(SPLITS, newcomer.split(len(rows), time[rows], 0), strict=True):
                splits[rows[places]] = name
        return splits.astype(np.str_)

"""`Wrapped`: another source, and a language model for its words."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import polars as pl
from pydantic import BaseModel, ConfigDict, field_serializer
from pydantic import Field as Constraint

from service.contract import files, plugins
from training import text
from training.data.prepare import Checksummed
from training.data.sources._protocol import Interactions, Source
from training.recipe import Choice, parse

_FORMAT = 1
"""Rises when the same texts come to mean another tiny model."""
_SMALL = {"domains": {"feed": 6_000, "shop": 3_000, "new": 1_000}, "users": 300, "items": 200}


class Wrapping(BaseModel):
    """Which source, and which model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Choice = Choice.model_validate({"name": "synthetic", **_SMALL})
    """The source by its name, with its options beside it; by default a small synthetic one."""
    model: str = "tiny"
    """A folder, `package:NAME`, or `tiny`: one with random weights, made of the source's own words."""
    cache: Path | None = Constraint(default=None, exclude=True)
    """Where tiny models are kept; by default `mdctr` in the user's cache."""

    @property
    def source_options(self) -> BaseModel:
        """The wrapped source's options, defaults included.

        Raises:
            UnknownOption: there is no such source.
            RunError: an option is wrong.
        """
        module = plugins.load("training.data.sources", self.of.name)
        model = cast("type[BaseModel]", module.Options)
        return parse(model, self.of.options, f"source {self.of.name}")

    @field_serializer("of")
    def _with_defaults(self, of: Choice) -> dict[str, Any]:
        return {"name": of.name, **self.source_options.model_dump(mode="json")}


class Wrapped:
    """A source whose rows are read once, and the folder of the model that reads its words.

    Args:
        options: which source and model.
        words: of the rows and the items, what a tiny model is made of.
        sums: the checksum of what is read of a model.
    """

    def __init__(
        self,
        options: Wrapping,
        words: Callable[[Source, Interactions, pl.DataFrame], Sequence[str]],
        sums: Callable[[Path], str],
    ) -> None:
        self._options, self._words, self._sums = options, words, sums

    @cached_property
    def source(self) -> Source:
        """The wrapped source."""
        module = plugins.load("training.data.sources", self._options.of.name)
        return cast("Source", module.open(self._options.source_options))

    @cached_property
    def given(self) -> Interactions:
        """Its rows."""
        return self.source.interactions()

    @cached_property
    def items(self) -> pl.DataFrame:
        """Its items."""
        return self.source.items()

    @cached_property
    def model(self) -> Path:
        """The model's folder; a tiny one is made if it is not there.

        Raises:
            RunError: there is no such model.
        """
        if self._options.model != "tiny":
            return text.folder(self._options.model)
        words = self._words(self.source, self.given, self.items)
        identity = hashlib.sha256(json.dumps([_FORMAT, *words]).encode()).hexdigest()
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = (self._options.cache or caches / "mdctr") / f"tiny-{identity[:16]}"
        if not path.exists():
            with files.new_folder(path) as folder:
                text.tiny(folder, words)
        return path

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of the wrapped source's and the model's, one a line, as far as there are any.

        Raises:
            RunError: data or model are not there, or not what they should be.
        """
        found = [self.source.checksum] if isinstance(self.source, Checksummed) else []
        if self._options.model != "tiny":
            found.append(self._sums(self.model))
        return hashlib.sha256("\n".join(found).encode()).hexdigest()


def words(items: pl.DataFrame) -> pl.Series:
    """The text of each item, or its name; null where there is neither."""
    columns = [name for name in ("text", "name") if name in items.columns]
    # Beside the items' columns, so that a null alone is one for each item, too.
    return items.with_columns(pl.coalesce(*columns, pl.lit(None, pl.String)).alias("words"))["words"]


def texts(source: Source, given: Interactions, items: pl.DataFrame) -> list[str]:  # noqa: ARG001 - as asked
    """What a tiny model that reads items is made of."""
    return words(items).drop_nulls().to_list()

"""`ItemTable`: every item's fields, encoded once, so that a request ships only ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.contract.errors import BundleError, SchemaError
from service.contract.index import Index, Values
from service.contract.schema import Column, FeatureSchema, Inputs


class ItemTable:
    """Items by id. Row 0 is an item of which nothing is known; the n items follow.

    On disk: `id.npy` (n,) integers or strings, `ids.npy` (n + 1, W) int32, `numbers.npy` (n + 1, X)
    float32. The arrays are mapped, not read, so that workers share one copy.
    """

    def __init__(self, keys: npt.NDArray[np.generic], inputs: Inputs) -> None:
        if len(inputs) != len(keys) + 1:
            raise BundleError(f"an item table of {len(keys)} ids has {len(inputs)} rows, not one more")
        self.keys = keys
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def encode(cls, schema: FeatureSchema, columns: Mapping[str, Column]) -> ItemTable:
        """Make a table from raw columns by `Field.key`; `item.id` must be among them and distinct.

        Raises:
            SchemaError: ids repeat, or a value does not fit its field.
        """
        keys = np.asarray(columns["item.id"])
        if keys.dtype.kind not in "iuU":
            keys = keys.astype(np.str_)
        if len(np.unique(keys)) != len(keys):
            raise SchemaError("item ids repeat")
        known = schema.encode("item", columns, len(keys))
        blank = schema.blanks["item"]
        return cls(
            keys,
            Inputs(np.concatenate([blank.ids, known.ids]), np.concatenate([blank.numbers, known.numbers])),
        )

    @classmethod
    def load(cls, folder: Path) -> ItemTable:
        """Map the table that `save` wrote.

        Raises:
            BundleError: a file is missing or damaged.
        """
        try:
            keys, ids, numbers = (
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("id", "ids", "numbers")
            )
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder} is not an item table: {error}") from error
        return cls(keys, Inputs(ids, numbers))

    def save(self, folder: Path) -> None:
        """Write the table's three files into a new folder."""
        folder.mkdir()
        np.save(folder / "id.npy", self.keys)
        np.save(folder / "ids.npy", self.inputs.ids)
        np.save(folder / "numbers.npy", self.inputs.numbers)

    @property
    def dtype(self) -> str:
        """What an item id is in JSON: `int` or `str`."""
        return "int" if self.keys.dtype.kind in "iu" else "str"

    @cached_property
    def _index(self) -> Index:
        return Index(self.keys)

    def rows(self, ids: Values) -> npt.NDArray[np.int32]:
        """The row of each item id, (n,) int32; 0 for an id that is not in the table."""
        return self._index.positions(ids) + np.int32(1)

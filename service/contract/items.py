"""`ItemTable`: every item's fields, encoded once, so that a request ships only ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.contract.errors import BundleError, SchemaError
from service.contract.field import Column
from service.contract.index import Index, Values
from service.contract.schema import FeatureSchema, Inputs


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
        keys = _distinct(columns["item.id"])
        known = schema.encode("item", columns, len(keys))
        blank = schema.blanks["item"]
        return cls(
            keys,
            Inputs(np.concatenate([blank.ids, known.ids]), np.concatenate([blank.numbers, known.numbers])),
        )

    def updated(self, schema: FeatureSchema, columns: Mapping[str, Column]) -> ItemTable:
        """The table with other items, or other values for those it has: ids keep their rows, new ones follow.

        What a known item has in other columns stays as it is.

        Args:
            schema: that the table was encoded with.
            columns: raw columns by `Field.key`; `item.id` must be among them and distinct.

        Raises:
            SchemaError: ids repeat, or a value does not fit its field.
        """
        keys = _distinct(columns["item.id"])
        rows = self.rows(keys)
        new = np.flatnonzero(rows == 0)
        rows[new] = len(self.inputs) + np.arange(len(new))
        # A new item begins as row 0, of which nothing is known.
        inputs = self.inputs.take(np.concatenate([np.arange(len(self.inputs)), np.zeros(len(new), np.int64)]))
        for slot in schema.scope("item"):
            if slot.field.key in columns:
                schema.write(inputs, slot.field.key, columns[slot.field.key], rows)
        return ItemTable(np.concatenate([self.keys, keys[new]]), inputs)

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ItemTable:
        """The table of arrays as `arrays` names them."""
        return cls(arrays["id"], Inputs(arrays["ids"], arrays["numbers"]))

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The table's arrays, by name of their files."""
        return {"id": self.keys, "ids": self.inputs.ids, "numbers": self.inputs.numbers}

    @classmethod
    def load(cls, folder: Path) -> ItemTable:
        """Map the table that `save` wrote.

        Raises:
            BundleError: a file is missing or damaged.
        """
        try:
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("id", "ids", "numbers")
            }
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder} is not an item table: {error}") from error
        return cls.of(arrays)

    def save(self, folder: Path) -> None:
        """Write the table's three files into a new folder."""
        folder.mkdir()
        for name, array in self.arrays.items():
            np.save(folder / f"{name}.npy", array)

    @property
    def dtype(self) -> Literal["int", "str"]:
        """What an item id is in JSON: `int` or `str`."""
        return "int" if self.keys.dtype.kind in "iu" else "str"

    @cached_property
    def _index(self) -> Index:
        return Index(self.keys)

    def rows(self, ids: Values) -> npt.NDArray[np.int32]:
        """The row of each item id, (n,) int32; 0 for an id that is not in the table."""
        return self._index.positions(ids) + np.int32(1)


def _distinct(column: Column) -> npt.NDArray[np.generic]:
    """Item ids, int64 or as text.

    Raises:
        SchemaError: one stands twice.
    """
    keys = np.asarray(column)
    keys = keys.astype(np.int64 if keys.dtype.kind in "iu" else np.str_, copy=False)
    values, counts = np.unique(keys, return_counts=True)
    if len(values) != len(keys):
        raise SchemaError(f"item ids repeat: {values[counts > 1][0]}")
    return keys

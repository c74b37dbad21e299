"""`Items`: an item table that answers, with what was computed of its rows, and what it must be to do so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract.bundle import Bundle
from service.contract.edition import Arrays
from service.contract.errors import ItemsError
from service.contract.field import PAD
from service.contract.items import ItemTable
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines._protocol import Engine, Handle
from service.resident import sigmoid
from service.stores._protocol import Version

SCORED = 64
"""Rows that are scored before a table answers."""
_TOGETHER = 1024
"""Rows that are scored in one go."""
_BLOCK = 1 << 16
"""Rows looked at in one go."""


@dataclass(frozen=True)
class Items:
    """One item table and its tables of item halves: a request has all of it from one version."""

    version: Version | None
    """None for the bundle's own."""
    table: ItemTable
    halves: Mapping[str, npt.NDArray[Any]]
    """Inputs of the graph over rows, by name; empty where the bundle has no such graph."""

    @classmethod
    def own(cls, bundle: Bundle) -> Items:
        """Those that a bundle was made with."""
        return cls(None, bundle.items, bundle.tables)

    @classmethod
    def checked(cls, version: Version, arrays: Arrays, bundle: Bundle) -> Items:
        """Those of an edition that fits the bundle, once their numbers were looked at.

        Raises:
            ItemsError: they are not what rows of this bundle's item table can be.
        """
        table = ItemTable.of(arrays)
        if len(np.unique(table.keys)) != len(table):
            raise ItemsError("its ids repeat")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not _all(array, np.isfinite):
                raise ItemsError(f"its {name} have a number that is not finite")
        ids, blank = table.inputs.ids, bundle.schema.blanks["item"]
        if ids.size and not PAD <= int(ids.min()) <= int(ids.max()) < bundle.schema.rows:
            raise ItemsError("its ids have a row that the model does not")
        first = table.inputs.take(slice(0, 1))
        if (first.ids != blank.ids).any() or (first.numbers != blank.numbers).any():
            raise ItemsError("its row 0 is not an item of which nothing is known")
        # The index is built when first used, and that is not to be in a request.
        table.rows(table.keys[:1])
        return cls(version, table, bundle.tables_of(arrays))

    def score(self, bundle: Bundle, engine: Engine, tolerance: float, rows: int = SCORED) -> None:
        """Score rows under the general pack, by their fields and, where there are item halves, by row.

        Args:
            bundle: whose pack scores.
            engine: what scores.
            tolerance: how far the two probabilities of a row may be apart.
            rows: how many, spread over the table.

        Raises:
            ItemsError: they cannot be scored, or the two are further apart.
        """
        _, data = next(iter(bundle.packs()))
        general = DomainPack.from_bytes(data)
        wanted = np.unique(np.linspace(0, len(self.table), rows).astype(np.int32))
        handle = engine.load(general)
        try:
            for start in range(0, len(wanted), _TOGETHER):
                self._score(wanted[start : start + _TOGETHER], general, engine, handle, tolerance)
        except ItemsError:
            raise
        except Exception as error:  # a runtime's errors have no common class, and a bad table stops nothing
            line = (str(error).splitlines() or [""])[0]
            raise ItemsError(f"the engine cannot score its rows: {type(error).__name__}: {line}") from error
        finally:
            engine.release(handle)

    def _score(
        self,
        rows: npt.NDArray[np.int32],
        general: DomainPack,
        engine: Engine,
        handle: Handle,
        tolerance: float,
    ) -> None:
        request = {name: each for name, each in general.golden.inputs.items() if name.startswith("request.")}
        taken = self.table.inputs.take(rows)
        fields = {"item.ids": taken.ids, "item.numbers": taken.numbers}
        fields = {name: each for name, each in fields.items() if name in general.golden.inputs}
        by_fields = engine.score({**request, **fields}, handle)
        if not np.isfinite(by_fields).all():
            raise ItemsError("its rows have no finite score")
        if self.halves:
            by_row = engine.score({**request, ITEM_ROWS: rows, **self.halves}, handle)
            off = float(np.abs(sigmoid(by_row) - sigmoid(by_fields)).max())
            if not off <= tolerance:
                raise ItemsError(f"its item halves are off by {off:.2g} in probability from its fields")


def _all(array: npt.NDArray[Any], check: np.ufunc) -> bool:
    return all(check(array[at : at + _BLOCK]).all() for at in range(0, len(array), _BLOCK))

"""`Bindings`: from where each input of a plan comes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.contract.errors import BundleError
from service.contract.manifest import ITEM_ROWS, GraphInput, Manifest

OUTPUT = "logit"
"""The one output of every graph: (B,) float32."""
_ROWS = GraphInput(name=ITEM_ROWS, dtype="int32", shape=("B",), scope="item", source="schema")


@dataclass(frozen=True)
class Bindings:
    """A plan's inputs, in the order of the manifest. Those that the plan does not read are not among them."""

    staged: tuple[GraphInput, ...]
    """What a request brings; at least one of them has a row a candidate."""
    packs: tuple[GraphInput, ...]
    tables: tuple[str, ...]
    """Tables of items, each with any number of rows."""

    @classmethod
    def of(cls, manifest: Manifest, graph: str, read: Collection[str]) -> Bindings:
        """Those of a plan.

        Args:
            manifest: of its bundle.
            graph: the ONNX file that the plan was made from.
            read: the inputs that the plan has.

        Raises:
            BundleError: it reads something that nothing brings, or nothing of candidates.
        """
        halves = manifest.item_halves
        by_rows = halves is not None and graph == halves.graph
        brought = [
            spec
            for spec in manifest.inputs
            if spec.scope == "request" or (spec.scope == "item" and not by_rows)
        ]
        brought += [_ROWS] * by_rows
        staged = tuple(spec for spec in brought if spec.name in read)
        packs = tuple(spec for spec in manifest.inputs if spec.scope == "pack" and spec.name in read)
        tables = tuple(name for name in (halves.tables if halves and by_rows else ()) if name in read)
        known = {*(spec.name for spec in (*staged, *packs)), *tables}
        if unknown := set(read) - known:
            raise BundleError(f"the plan of {graph} reads {', '.join(sorted(unknown))}, which nothing brings")
        if not any("B" in spec.shape for spec in staged):
            raise BundleError(f"the plan of {graph} reads nothing of candidates")
        return cls(staged, packs, tables)

    @property
    def counted(self) -> str:
        """An input with a row for each candidate."""
        return next(spec.name for spec in self.staged if "B" in spec.shape)


def shape_of(spec: GraphInput, candidates: int) -> tuple[int, ...]:
    """An input's shape for so many candidates."""
    return tuple(candidates if size == "B" else size for size in spec.shape)


def check(spec: GraphInput, array: npt.NDArray[np.generic]) -> None:
    """Refuse an array that would be broadcast or converted on its way into the staging buffer.

    Raises:
        ValueError: its type, or its shape beyond the candidates, is another.
    """
    shape = tuple(len(array) if size == "B" else size for size in spec.shape) if array.ndim else None
    if array.shape != shape or array.dtype != np.dtype(spec.dtype):
        raise ValueError(
            f"{spec.name} is {array.dtype}{list(array.shape)}, not {spec.dtype}{list(spec.shape)}"
        )

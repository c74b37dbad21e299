"""No engine: every logit is 0. It measures what a request costs apart from the engine.

No pack scores its golden rows so, hence it needs `MDCTR_GOLDEN_TOLERANCE=1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.contract.bundle import Bundle
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines._protocol import Arrays, Handle


@dataclass(eq=False)
class NullHandle:
    """Nothing but whether it may still be used."""

    released: bool = False
    nbytes: int = 0


class NullEngine:
    """Answers 0 for every candidate."""

    def __init__(self, items: frozenset[str]) -> None:
        self._items = items

    def load(self, pack: DomainPack) -> Handle:  # noqa: ARG002 - an engine takes one
        """Keep nothing."""
        return NullHandle()

    def score(self, inputs: Arrays, under: Handle) -> npt.NDArray[np.float32]:
        """Zeros (B,) float32."""
        _held(under)
        return np.zeros(next(len(inputs[name]) for name in inputs if name in self._items), np.float32)

    def release(self, handle: Handle) -> None:
        """Refuse the handle from now on."""
        _held(handle).released = True

    def close(self) -> None:
        """Nothing is held."""


def open(bundle: Bundle, threads: int) -> NullEngine:  # noqa: A001, ARG001 - every option's entry looks so
    """An engine that knows the bundle's item inputs, to count candidates by."""
    fields = {spec.name for spec in bundle.manifest.inputs if spec.scope == "item"}
    return NullEngine(frozenset({ITEM_ROWS, *fields}))


def _held(handle: Handle) -> NullHandle:
    if not isinstance(handle, NullHandle) or handle.released:
        raise ValueError("the pack's handle was released, or is another engine's")
    return handle

"""`Layout`: where each of several arrays lies in one block of bytes, so that one copy moves all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 256
"""Bytes. What `cudaMalloc` gives starts at a multiple of it, so a tensor within a block is placed no worse
than one with memory of its own."""


@dataclass(frozen=True)
class Slot:
    """One array's place."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array, without what aligns the next."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """The places of arrays, by name and in order."""

    slots: Mapping[str, Slot]
    nbytes: int
    """Of the whole block, a multiple of `ALIGNMENT` and never 0."""

    @classmethod
    def of(cls, arrays: Iterable[tuple[str, tuple[int, ...], npt.DTypeLike]]) -> Layout:
        """Arrays one after another, each at a multiple of `ALIGNMENT`.

        Args:
            arrays: name, shape and type of each.
        """
        slots, at = {}, 0
        for name, shape, dtype in arrays:
            slots[name] = Slot(at, tuple(shape), np.dtype(dtype))
            at += -(-slots[name].nbytes // ALIGNMENT) * ALIGNMENT
        return cls(slots, max(at, ALIGNMENT))

    @property
    def held(self) -> int:
        """Bytes of the arrays alone."""
        return sum(slot.nbytes for slot in self.slots.values())

    def views(self, block: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Each array, as a view into a block (nbytes,)."""
        return {
            name: block[slot.offset : slot.offset + slot.nbytes].view(slot.dtype).reshape(slot.shape)
            for name, slot in self.slots.items()
        }

"""`Stacks`: the tensors of many packs, one behind another on the device."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract.pack import DomainPack
from service.engines._cuda import Memory
from service.engines._device import AnyDevice

LAYOUT = "mdctr.packs"
"""Metadata of a graph: JSON, `{"rows": {table: rows of a pack}, "values": {input: [tensors in order]}}`."""
_PACK = "pack."
_MOST_ROWS = 2**31 - 1
"""Of a table over all slots: graphs count them in int32."""


@dataclass(frozen=True)
class Stack:
    """One input, of all slots."""

    name: str
    """The graph's input."""
    tensors: tuple[str, ...]
    """What of a pack it holds, in order."""
    rows: int
    """Rows of a slot: 1 for tensors that lie in one row, V for a table."""
    row: tuple[int, ...]
    """The shape of a row."""
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Of a slot."""
        return self.rows * math.prod(self.row) * self.dtype.itemsize

    def of(self, pack: DomainPack) -> npt.NDArray[Any]:
        """A pack's part of it, (rows, *row).

        In memory of its own, but for a table that nobody can write to and that is as it shall be: that stays
        where it lies, in a mapped file, say.

        Raises:
            ValueError: it has numbers beyond float16's.
        """
        if (
            len(self.tensors) == 1
            and (table := np.asarray(pack.tensors[self.tensors[0]])).dtype == self.dtype
        ):
            fixed = not table.flags.writeable and table.flags.c_contiguous and table.flags.aligned
            if fixed and table.shape == (self.rows, *self.row):
                return table
        parts = [np.asarray(pack.tensors[name]).ravel() for name in self.tensors]
        with np.errstate(over="ignore"):
            joined = np.concatenate(parts).astype(self.dtype)
        if joined.dtype == np.float16 and not np.isfinite(joined).all():
            raise ValueError("it has numbers beyond float16's")
        size = self.rows * math.prod(self.row)
        if joined.size < size:  # a table's further rows are zeros
            joined = np.concatenate([joined, np.zeros(size - joined.size, self.dtype)])
        return joined.reshape(self.rows, *self.row)


def stacks_of(layout: str, inputs: Mapping[str, tuple[Sequence[int | str], np.dtype[Any]]]) -> list[Stack]:
    """The stacks that a graph reads.

    Args:
        layout: the graph's metadata under `LAYOUT`.
        inputs: shape and type of its inputs; the first size is of all slots.
    """
    found, read = json.loads(layout), []
    for name, rows in found["rows"].items():
        shape, dtype = inputs[name]
        read.append(Stack(name, (name.removeprefix(_PACK),), rows, tuple(map(int, shape[1:])), dtype))
    for name, tensors in found["values"].items():
        shape, dtype = inputs[name]
        read.append(Stack(name, tuple(tensors), 1, tuple(map(int, shape[1:])), dtype))
    return read


class Stacks:
    """Memory of the device for so many slots."""

    def __init__(self, device: AnyDevice, stacks: Sequence[Stack], count: int) -> None:
        self.stacks, self.count = list(stacks), count
        self._device = device
        self._memory: dict[Stack, Memory] = {
            stack: device.allocate(max(1, stack.nbytes * count)) for stack in self.stacks
        }

    @staticmethod
    def fitting(stacks: Sequence[Stack], nbytes: int, most: int) -> int:
        """How many slots fit into so many bytes, at least one and at most `most`."""
        of_slot = max(1, sum(stack.nbytes for stack in stacks))
        countable = min((_MOST_ROWS // stack.rows for stack in stacks), default=most)
        return max(1, min(nbytes // of_slot, countable, most))

    @property
    def nbytes(self) -> int:
        """Of all slots."""
        return self.count * self.slot_bytes

    @property
    def slot_bytes(self) -> int:
        """Of one."""
        return sum(stack.nbytes for stack in self.stacks)

    def address(self, stack: Stack) -> int:
        """Where a stack begins."""
        return self._memory[stack].address

    def shape(self, stack: Stack) -> tuple[int, ...]:
        """Of a stack over all slots."""
        return (self.count * stack.rows, *stack.row)

    def of(self, pack: DomainPack) -> list[npt.NDArray[Any]]:
        """A pack as `write` takes it."""
        return [stack.of(pack) for stack in self.stacks]

    def write(self, slot: int, arrays: Sequence[npt.NDArray[Any]], stream: int) -> None:
        """Enqueue the copy of a pack into a slot, behind what reads the slot."""
        for stack, array in zip(self.stacks, arrays, strict=True):
            if array.nbytes:
                self._device.upload(array, self._memory[stack].address + slot * stack.nbytes, stream)

"""`Host`: the machine's own memory in the place of a GPU's, so that an engine for a GPU runs without one."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engines._cuda import Memory


class Host:
    """As `_cuda.Device`. Everything is done when a call returns."""

    def __init__(self) -> None:
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}

    def allocate(self, nbytes: int) -> Memory:
        """Zeros."""
        block = np.zeros(nbytes + 256, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self._blocks[address] = block
        memory = Memory(address, nbytes)
        weakref.finalize(memory, self._blocks.pop, address).atexit = False
        return memory

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Zeros (nbytes,)."""
        return np.zeros(nbytes, np.uint8)

    def stream(self) -> int:
        """There is none."""
        return 0

    def ignore_captures(self) -> None:
        """There are none."""

    def drop(self, stream: int) -> None:
        """Nothing is left of it."""

    def upload(self, block: npt.NDArray[Any], to: int, stream: int) -> None:
        """Copy a contiguous array to an address."""
        del stream
        ctypes.memmove(to, block.ctypes.data, block.nbytes)

    def download(self, start: int, into: npt.NDArray[Any], stream: int) -> None:
        """Copy memory to a contiguous array."""
        del stream
        ctypes.memmove(into.ctypes.data, start, into.nbytes)

    def wait(self, stream: int) -> None:
        """Nothing is under way."""

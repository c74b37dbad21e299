"""`Resident`: named arrays that stay on the device, in one block of its memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engines._cuda import Device, Memory
from service.engines._layout import Layout


@dataclass(frozen=True, eq=False)
class Resident:
    """Arrays on the device.

    Their memory is free when nobody holds this object any more, so who computes with them holds it until the
    answer is there.
    """

    memory: Memory
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.layout.held

    @property
    def addresses(self) -> Iterable[tuple[str, int]]:
        """Where each array lies."""
        return ((name, self.memory.address + slot.offset) for name, slot in self.layout.slots.items())


class Uploader:
    """Brings arrays to the device, on a stream of its own."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream: int | None = device.stream()
        self._lock = threading.Lock()

    def __call__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Resident:
        """Copy arrays to the device, and return when they are there.

        Raises:
            EngineError: the device has no memory left.
            ValueError: the stream was destroyed.
        """
        layout = Layout.of((name, array.shape, array.dtype) for name, array in arrays.items())
        resident = Resident(self._device.allocate(layout.nbytes), layout)
        laid = [np.ascontiguousarray(array) for array in arrays.values()]
        with self._lock:
            if self._stream is None:
                raise ValueError("the engine is closed")
            for (_, address), array in zip(resident.addresses, laid, strict=True):
                self._device.upload(array, address, self._stream)
            # A copy from memory that is not page-locked may return when it was read, before it has arrived.
            self._device.wait(self._stream)
        return resident

    def close(self) -> None:
        """Destroy the stream, once nothing is brought over it any more."""
        with self._lock:
            if self._stream is not None:
                self._device.drop(self._stream)
                self._stream = None

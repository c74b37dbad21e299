"""`AnyDevice`: where an engine computes, a GPU or this machine."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from service.engines._cuda import Memory


class AnyDevice(Protocol):
    """What `_cuda.Device` and `_host.Host` have in common."""

    def allocate(self, nbytes: int) -> Memory:
        """Memory of the device, at a multiple of 256 bytes."""
        ...

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Zeros (nbytes,) of the host, from which the device copies."""
        ...

    def stream(self) -> int:
        """A new stream."""
        ...

    def ignore_captures(self) -> None:
        """Let the calling thread work while another captures a graph."""
        ...

    def drop(self, stream: int) -> None:
        """Destroy a stream, which nothing uses any more."""
        ...

    def upload(self, block: npt.NDArray[Any], to: int, stream: int) -> None:
        """Enqueue the copy of a contiguous array to the device."""
        ...

    def download(self, start: int, into: npt.NDArray[Any], stream: int) -> None:
        """Enqueue the copy of memory of the device to a contiguous array."""
        ...

    def wait(self, stream: int) -> None:
        """Return when all that was enqueued is done."""
        ...

"""`cuda.bindings.runtime` without a GPU, as strict as one where it matters.

The device's memory lies at addresses that the host cannot read, holds rubbish at first, and is copied only
when a stream is waited for. What is enqueued too early, too late, or to a wrong place gives wrong numbers
or an error, as it would on a GPU. Copies between allocations, and beyond the end of one, fail.
"""

# ruff: noqa: N802, N815 - CUDA's names

from __future__ import annotations

import ctypes
import itertools
import threading
from bisect import bisect_right
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType

import numpy as np

RUBBISH = 0xA5
_START = 0x7_0000_0000


class cudaError_t(IntEnum):  # noqa: N801 - CUDA's name
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidResourceHandle = 400
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):  # noqa: N801 - CUDA's name
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):  # noqa: N801 - CUDA's name
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(IntEnum):  # noqa: N801 - CUDA's name
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


Answer = tuple[object, ...]
OK: Answer = (cudaError_t.cudaSuccess,)


class Fault(Exception):
    """Something that was enqueued cannot be done."""


class FakeCuda(ModuleType):
    """The module."""

    cudaMemcpyKind = cudaMemcpyKind
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self, capability: tuple[int, int] = (9, 0), nbytes: int = 1 << 30) -> None:
        super().__init__("cuda.bindings.runtime")
        self.capability = capability
        self.free_bytes = nbytes
        self.memory: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.copies: list[tuple[str, int]] = []
        """What was copied in the order in which it was: direction and bytes."""
        self.capturing: int | None = None
        """The thread that captures a graph, globally, as ONNX Runtime does."""
        self._modes: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._next = _START
        self._lock = threading.RLock()

    def cudaGetDevice(self) -> Answer:
        return (*OK, 0)

    def cudaDeviceGetAttribute(self, attr: int, device: int) -> Answer:
        assert device == 0
        return (*OK, self.capability[attr - cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor])

    def cudaThreadExchangeStreamCaptureMode(self, mode: int) -> Answer:
        thread = threading.get_ident()
        before, self._modes[thread] = self._modes.get(thread, 0), mode
        return (*OK, before)

    def cudaMalloc(self, size: int) -> Answer:
        with self._lock:
            if self._prohibited():
                return (cudaError_t.cudaErrorStreamCaptureUnsupported, None)
            if size > self.free_bytes:
                return (cudaError_t.cudaErrorMemoryAllocation, None)
            self.free_bytes -= size
            address, self._next = self._next, self._next + -(-size // 512) * 512 + 4096
            self.memory[address] = np.full(size, RUBBISH, np.uint8)
            return (*OK, address)

    def cudaFree(self, devPtr: int) -> Answer:
        with self._lock:
            for stream in list(self.streams):
                self._run(stream)
            self.free_bytes += len(self.memory.pop(devPtr))
            return OK

    def cudaMallocHost(self, size: int) -> Answer:
        block = np.full(size, RUBBISH, np.uint8)
        self.host[block.ctypes.data] = block
        return (*OK, block.ctypes.data)

    def cudaFreeHost(self, ptr: int) -> Answer:
        self.host.pop(ptr)
        return OK

    def cudaStreamCreateWithFlags(self, flags: int) -> Answer:
        assert flags == self.cudaStreamNonBlocking
        number = next(self._numbers)
        self.streams[number] = []
        return (*OK, number)

    def cudaStreamDestroy(self, stream: int) -> Answer:
        with self._lock:
            self._run(stream)
            del self.streams[stream]
            return OK

    def cudaStreamSynchronize(self, stream: int) -> Answer:
        with self._lock:
            if stream not in self.streams:
                return (cudaError_t.cudaErrorInvalidResourceHandle,)
            try:
                self._run(stream)
            except Fault:
                return (cudaError_t.cudaErrorLaunchFailure,)
            return OK

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> Answer:
        down = kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        if stream not in self.streams or self.at(src if down else dst, count) is None:
            return (cudaError_t.cudaErrorInvalidValue,)

        def copy() -> None:
            block = self.at(src if down else dst, count)
            if block is None:
                raise Fault
            self.copies.append(("down" if down else "up", count))
            if down:
                ctypes.memmove(dst, block.ctypes.data, count)
            else:
                ctypes.memmove(block.ctypes.data, src, count)

        self.enqueue(stream, copy)
        return OK

    def cudaGetErrorString(self, error: cudaError_t) -> Answer:
        return (*OK, error.name.encode())

    def enqueue(self, stream: int, what: Callable[[], None]) -> None:
        """Do something when the stream is waited for."""
        with self._lock:
            self.streams[stream].append(what)

    def at(self, address: int, nbytes: int) -> np.ndarray | None:
        """So many bytes of the device from an address on; None where they are not within one allocation."""
        with self._lock:
            starts = sorted(self.memory)
            where = bisect_right(starts, address) - 1
            if where < 0 or address - starts[where] + nbytes > len(self.memory[starts[where]]):
                return None
            offset = address - starts[where]
            return self.memory[starts[where]][offset : offset + nbytes]

    def _prohibited(self) -> bool:
        thread = threading.get_ident()
        elsewhere = not self._modes.get(thread, cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
        return self.capturing is not None and (self.capturing == thread or elsewhere)

    def _run(self, stream: int) -> None:
        todo, self.streams[stream] = self.streams[stream], []
        for each in todo:
            each()

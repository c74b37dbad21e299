"""`Device`: the GPU of this process, by the few calls of the CUDA runtime that an engine needs.

`cuda.bindings`, NVIDIA's own package, makes the calls. It brings the runtime with it and knows the types;
ctypes would have to find a `libcudart` that the driver can run, and to repeat its signatures. It is imported
when a device is opened and not before. The device is the first that `CUDA_VISIBLE_DEVICES` shows.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from service.contract.errors import EngineError

_T = TypeVar("_T")
_MISSING = "cuda.bindings is not installed: pip install 'mdctr[tensorrt]'"


class Stream(Protocol):
    """A stream's handle."""

    def __int__(self) -> int:
        """Its address."""
        ...


class CudaError(Protocol):
    """`cudaError_t`: 0 is success."""

    def __int__(self) -> int:
        """The error's number."""
        ...


class CudaMemcpyKind(Protocol):
    """`cudaMemcpyKind`."""

    cudaMemcpyHostToDevice: int  # noqa: N815 - CUDA's name
    cudaMemcpyDeviceToHost: int  # noqa: N815 - CUDA's name


class CudaDeviceAttr(Protocol):
    """`cudaDeviceAttr`."""

    cudaDevAttrComputeCapabilityMajor: int  # noqa: N815 - CUDA's name
    cudaDevAttrComputeCapabilityMinor: int  # noqa: N815 - CUDA's name


class CudaStreamCaptureMode(Protocol):
    """`cudaStreamCaptureMode`."""

    cudaStreamCaptureModeThreadLocal: int  # noqa: N815 - CUDA's name


class CudaRuntime(Protocol):
    """The part of `cuda.bindings.runtime` that is used. Every call answers a tuple, the error first."""

    # ruff: noqa: N802 - each is described by CUDA under its name
    cudaMemcpyKind: CudaMemcpyKind  # noqa: N815
    cudaDeviceAttr: CudaDeviceAttr  # noqa: N815
    cudaStreamCaptureMode: CudaStreamCaptureMode  # noqa: N815
    cudaStreamNonBlocking: int  # noqa: N815

    def cudaGetDevice(self) -> tuple[CudaError, int]: ...
    def cudaDeviceGetAttribute(self, attr: int, device: int) -> tuple[CudaError, int]: ...
    def cudaMalloc(self, size: int) -> tuple[CudaError, int]: ...
    def cudaFree(self, devPtr: int) -> tuple[CudaError]: ...
    def cudaMallocHost(self, size: int) -> tuple[CudaError, int]: ...
    def cudaFreeHost(self, ptr: int) -> tuple[CudaError]: ...
    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, Stream]: ...
    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]: ...
    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]: ...
    def cudaThreadExchangeStreamCaptureMode(self, mode: int) -> tuple[CudaError, int]: ...
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[CudaError]: ...
    def cudaGetErrorString(self, error: CudaError) -> tuple[CudaError, bytes]: ...


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes of the device; they are free again when nobody holds this object any more."""

    address: int
    nbytes: int


class Device:
    """The GPU that the calling thread uses by default. Its methods may be called from any thread."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        number = self._value(runtime.cudaGetDevice())
        attributes = runtime.cudaDeviceAttr
        major, minor = (
            self._value(runtime.cudaDeviceGetAttribute(attribute, number))
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.capability = f"{major}.{minor}"
        """The compute capability, as `9.0`."""

    def allocate(self, nbytes: int) -> Memory:
        """Memory of the device, at a multiple of 256 bytes; its content is undefined.

        Raises:
            EngineError: there is not so much.
        """
        memory = Memory(self._value(self._runtime.cudaMalloc(nbytes)), nbytes)
        # `cudaFree` waits for what runs on the device, so nothing that was enqueued reads freed memory.
        _when_gone(memory, self._runtime.cudaFree, memory.address)
        return memory

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Zeros (nbytes,) in page-locked memory of the host, which the device copies from and to directly.

        Raises:
            EngineError: there is not so much.
        """
        address = self._value(self._runtime.cudaMallocHost(nbytes))
        raw = (ctypes.c_uint8 * nbytes).from_address(address)
        _when_gone(raw, self._runtime.cudaFreeHost, address)
        block: npt.NDArray[np.uint8] = np.frombuffer(memoryview(raw), np.uint8)
        block[:] = 0
        return block

    def stream(self) -> int:
        """A new stream, which does not wait for the default one.

        Raises:
            EngineError: the device does not answer.
        """
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._value(self._runtime.cudaStreamCreateWithFlags(flags)))

    def ignore_captures(self) -> None:
        """Let the calling thread allocate, free and wait while another thread captures a graph.

        ONNX Runtime captures globally: such calls fail then, in every thread that does not ask for this.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._done(self._runtime.cudaThreadExchangeStreamCaptureMode(mode))

    def drop(self, stream: int) -> None:
        """Destroy a stream. Nothing may use it any more: CUDA does not check its handle."""
        self._done(self._runtime.cudaStreamDestroy(stream))

    def upload(self, block: npt.NDArray[Any], to: int, stream: int) -> None:
        """Enqueue the copy of a contiguous array to an address of the device.

        The array must not change before `wait`.
        """
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._done(self._runtime.cudaMemcpyAsync(to, block.ctypes.data, block.nbytes, kind, stream))

    def download(self, start: int, into: npt.NDArray[Any], stream: int) -> None:
        """Enqueue the copy of memory of the device to a contiguous array, which is complete after `wait`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._done(self._runtime.cudaMemcpyAsync(into.ctypes.data, start, into.nbytes, kind, stream))

    def wait(self, stream: int) -> None:
        """Return when all that was enqueued is done.

        Raises:
            EngineError: some of it failed.
        """
        self._done(self._runtime.cudaStreamSynchronize(stream))

    def _value(self, answer: tuple[CudaError, _T]) -> _T:
        self._done(answer)
        return answer[1]

    def _done(self, answer: tuple[Any, ...]) -> None:
        error = answer[0]
        if int(error):
            text = self._runtime.cudaGetErrorString(error)[1].decode(errors="replace")
            raise EngineError(f"CUDA error {int(error)}: {text}")


def open_device() -> Device:
    """The GPU.

    Raises:
        EngineError: there is none, or `cuda.bindings` is not installed.
    """
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineError(_MISSING) from error
    return Device(cast("CudaRuntime", runtime))


def _when_gone(owner: object, free: Callable[[int], object], address: int) -> None:
    # Not at the interpreter's exit: the driver may be gone before, and it frees everything by itself.
    weakref.finalize(owner, free, address).atexit = False

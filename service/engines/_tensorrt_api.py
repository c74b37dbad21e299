"""The part of TensorRT's Python API with which plans are loaded and run, as protocols.

TensorRT publishes no types. Here every class has TensorRT's name and every member its own, so mypy finds a
call that is not listed here, and a test finds a name here that the library does not have. What builds plans
is in `export._tensorrt_api`, because the lean runtime has none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Severity(Protocol):
    """Of a message; the smaller the worse."""

    def __int__(self) -> int: ...


class ILogger(Protocol):
    """What TensorRT says things to; ours derive from it."""

    INTERNAL_ERROR: Severity
    ERROR: Severity
    WARNING: Severity
    INFO: Severity
    VERBOSE: Severity

    def log(self, severity: Severity, msg: str) -> None: ...


class TensorIOMode(Protocol):
    """Whether a tensor is read or written."""

    INPUT: object
    OUTPUT: object


class DataType(Protocol):
    """Of a tensor's numbers."""

    FLOAT: object
    INT32: object


class IExecutionContext(Protocol):
    """One execution at a time, under one optimisation profile."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """A plan that was read."""

    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> object: ...
    def get_tensor_dtype(self, name: str) -> object: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> IExecutionContext | None: ...


class Runtime(Protocol):
    """Reads plans."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class MakesRuntimes(Protocol):
    """`Runtime`, before it is called."""

    def __call__(self, logger: ILogger) -> Runtime: ...


class TensorRt(Protocol):
    """The module `tensorrt`, or `tensorrt_lean`."""

    __name__: str
    __version__: str
    ILogger: Any
    """The class; ours derive from it."""
    Runtime: MakesRuntimes
    TensorIOMode: TensorIOMode
    DataType: DataType

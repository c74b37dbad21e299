"""`tensorrt` without TensorRT: ONNX Runtime computes, on memory of `fake_cuda`.

It has the classes and members that are used, under TensorRT's names, and is as strict as their
documentation: shapes must lie within the profile, a profile serves one context, addresses must be set,
aligned and large enough, a plan is read by the version that built it on the kind of GPU that it was built
on. It answers None or False and tells the logger why, as TensorRT does. It computes when the stream is
waited for.
"""

# ruff: noqa: A002, N802 - TensorRT's names

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.service.fake_cuda import FakeCuda, Fault

ALIGNMENT = 256
_DTYPES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.INT32: "INT32"}
_NUMPY = {"FLOAT": np.dtype(np.float32), "INT32": np.dtype(np.int32)}


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    INT32 = 3


class BuilderFlag(Enum):
    TF32 = 7
    VERSION_COMPATIBLE = 12
    EXCLUDE_LEAN_RUNTIME = 13


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass
class ITensor:
    name: str


@dataclass
class ParserError:
    text: str

    def desc(self) -> str:
        return self.text


@dataclass
class INetworkDefinition:
    flags: int
    graph: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    @property
    def num_inputs(self) -> int:
        return len(self.graph.graph.input)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.graph.graph.input[index].name)


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])

    def parse_from_file(self, model: str) -> bool:
        try:
            self._network.graph.CopyFrom(onnx.load(model))
        except Exception as error:  # noqa: BLE001 - whatever protobuf says of it
            self._errors.append(f"cannot parse: {type(error).__name__}")
            self._logger.log(Severity.ERROR, f"cannot parse {model}")
            return False
        return True


@dataclass
class IOptimizationProfile:
    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("an inconsistency was detected")
        self.shapes[input] = (min, opt, max)


@dataclass
class ITimingCache:
    content: bytes

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content)


class IBuilderConfig:
    def __init__(self, mark: bytes) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None
        self._mark = mark

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile.shapes:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return ITimingCache(serialized_timing_cache or self._mark)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not cache.content.startswith(self._mark) and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.cache


@dataclass
class Builder:
    logger: ILogger
    trt: FakeTensorRt

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.trt.mark)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        missing = [
            value.name
            for value in network.graph.graph.input
            if any(not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
            and any(value.name not in profile.shapes for profile in config.profiles)
        ]
        if (
            missing
            or not config.profiles
            or not network.flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        ):
            self.logger.log(Severity.ERROR, f"Network has dynamic inputs, but no profile of: {missing}")
            return None
        if config.cache is not None:
            config.cache.content += b"+"
        head = {
            "version": self.trt.__version__,
            "capability": self.trt.cuda.capability,
            "profiles": [profile.shapes for profile in config.profiles],
            "flags": sorted(flag.name for flag in config.flags),
        }
        return IHostMemory(json.dumps(head).encode() + b"\n" + network.graph.SerializeToString())


@dataclass
class Runtime:
    logger: ILogger
    trt: FakeTensorRt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        head, _, graph = serialized_engine.partition(b"\n")
        plan = json.loads(head)
        if plan["version"] != self.trt.__version__ or tuple(plan["capability"]) != self.trt.cuda.capability:
            self.logger.log(Severity.ERROR, "The engine plan file is not compatible with this version")
            return None
        return ICudaEngine(plan, graph, self.logger, self.trt.cuda)


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], graph: bytes, logger: ILogger, cuda: FakeCuda) -> None:
        self.logger, self.cuda = logger, cuda
        self.profiles = [
            {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()}
            for profile in plan["profiles"]
        ]
        proto = onnx.load_model_from_string(graph)
        self.io = {value.name: value for value in (*proto.graph.input, *proto.graph.output)}
        self.outputs = {value.name for value in proto.graph.output}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.taken: set[int] = set()
        """Profiles that contexts use."""

    @property
    def num_io_tensors(self) -> int:
        return len(self.io)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.io)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name in self.outputs else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_DTYPES[self.io[name].type.tensor_type.elem_type]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self.profiles[profile_index].get(name) or [self.static(name)] * 3)

    def create_execution_context(self) -> IExecutionContext | None:
        return IExecutionContext(self)

    def static(self, name: str) -> tuple[int, ...]:
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else -1
            for dim in self.io[name].type.tensor_type.shape.dim
        )


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._busy = threading.Lock()

    def __del__(self) -> None:
        self._engine.taken.discard(-1 if self._profile is None else self._profile)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if stream_handle not in self._engine.cuda.streams:
            return self._no("no such stream")
        if profile_index in self._engine.taken or not profile_index < self._engine.num_optimization_profiles:
            return self._no("the profile is in use, or there is none")
        self._engine.taken.add(profile_index)
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None or name not in self._engine.io:
            return self._no(f"no profile, or no input {name}")
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(least) or not all(
            a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
        ):
            return self._no(f"{name}: {shape} is not within the profile")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.io or memory % ALIGNMENT:
            return self._no(f"{name}: unknown or not aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._busy.acquire(blocking=False), "two threads in one context"
        try:
            shapes = {}
            for name in self._engine.io:
                shape = self._shapes.get(name, self._engine.static(name))
                if name in self._engine.outputs:
                    shape = self._output(shape)
                nbytes = 4 * math.prod(shape)
                if -1 in shape or self._engine.cuda.at(self._addresses.get(name, 0), nbytes) is None:
                    return self._no(f"{name}: no shape, no address, or too little memory at it")
                shapes[name] = shape
            addresses = dict(self._addresses)
            self._engine.cuda.enqueue(stream_handle, lambda: self._compute(shapes, addresses))
            return True
        finally:
            self._busy.release()

    def _output(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows = next(shape[0] for name, shape in self._shapes.items() if name.startswith("item."))
        return tuple(rows if size == -1 else size for size in shape)

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        arrays = {}
        for name, shape in shapes.items():
            block = self._engine.cuda.at(addresses[name], 4 * math.prod(shape))
            if block is None:
                raise Fault
            arrays[name] = block.view(_NUMPY[self._engine.get_tensor_dtype(name).name]).reshape(shape)
        answers = {name: arrays.pop(name) for name in self._engine.outputs}
        # Copies: ONNX Runtime wants memory aligned as its own.
        found = self._engine.session.run(
            list(answers), {name: np.array(each) for name, each in arrays.items()}
        )
        for name, each in zip(answers, found, strict=True):
            answers[name][...] = each

    def _no(self, why: str) -> bool:
        self._engine.logger.log(Severity.ERROR, why)
        return False


class FakeTensorRt(ModuleType):
    """The module `tensorrt`, or, called so, `tensorrt_lean`."""

    ILogger, TensorIOMode, DataType, OnnxParser = ILogger, TensorIOMode, DataType, OnnxParser
    BuilderFlag, NetworkDefinitionCreationFlag = BuilderFlag, NetworkDefinitionCreationFlag

    def __init__(self, cuda: FakeCuda, name: str = "tensorrt", version: str = "11.4.0.106") -> None:
        super().__init__(name)
        self.cuda = cuda
        self.__version__ = version
        self.mark = f"{version} {cuda.capability}".encode()
        """With what a timing cache of this library on this GPU begins."""

    def Builder(self, logger: Any) -> Builder:
        return Builder(logger, self)

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(logger, self)

"""The part of TensorRT's Python API that builds plans, as protocols.

As `service.engines._tensorrt_api` for what runs them: TensorRT's names, checked against the library's.
"""

from __future__ import annotations

from typing import Protocol

from service.engines._tensorrt_api import ILogger, TensorRt

Shape = tuple[int, ...]


class IHostMemory(Protocol):
    """What TensorRT wrote; `bytes` copies it."""

    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


class ITensor(Protocol):
    """A tensor of a network."""

    name: str


class INetworkDefinition(Protocol):
    """A graph, read."""

    num_inputs: int

    def get_input(self, index: int) -> ITensor: ...


class ParserError(Protocol):
    """What the parser does not understand."""

    def desc(self) -> str: ...


class OnnxParser(Protocol):
    """Reads graphs."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class IOptimizationProfile(Protocol):
    """Between which shapes a plan is to run, and for which it is to be fast."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...  # noqa: A002


class ITimingCache(Protocol):
    """What the builder measured."""

    def serialize(self) -> IHostMemory: ...


class BuilderFlag(Protocol):
    """What a build may do."""

    TF32: object
    VERSION_COMPATIBLE: object
    EXCLUDE_LEAN_RUNTIME: object


class IBuilderConfig(Protocol):
    """How to build."""

    def set_flag(self, flag: object) -> None: ...
    def clear_flag(self, flag: object) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    """Builds."""

    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class Flag(Protocol):
    """A member of an enumeration, whose number is a bit."""

    def __int__(self) -> int: ...


class NetworkDefinitionCreationFlag(Protocol):
    """What a network is to be."""

    STRONGLY_TYPED: Flag


class MakesBuilders(Protocol):
    """`Builder`, before it is called."""

    def __call__(self, logger: ILogger) -> Builder: ...


class MakesParsers(Protocol):
    """`OnnxParser`, before it is called."""

    def __call__(self, network: INetworkDefinition, logger: ILogger) -> OnnxParser: ...


class BuildingTensorRt(TensorRt, Protocol):
    """The module `tensorrt`."""

    Builder: MakesBuilders
    OnnxParser: MakesParsers
    BuilderFlag: BuilderFlag
    NetworkDefinitionCreationFlag: NetworkDefinitionCreationFlag

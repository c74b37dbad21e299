"""Build a bundle's graphs into TensorRT plans, on the machine and for the GPU that is to run them.

A plan has an optimisation profile for each size, and each profile allows that size alone. The builder looks
for the fastest kernels for one shape and needs not heed others, and shapes that stand are set once and not
for each request; the price is to pad. Every profile takes its share of the build, and a context's memory,
so sizes are few.

Networks are strongly typed: a tensor has the type that the graph says. TensorRT 11 knows nothing else, and
version 10 is told so. Packs are inputs, so a new pack needs no refit.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from export import half_graph
from export._tensorrt_api import BuildingTensorRt, IBuilderConfig, INetworkDefinition, IOptimizationProfile
from service.contract import files
from service.contract.bundle import Bundle
from service.contract.errors import EngineError
from service.engines._bindings import Bindings, shape_of
from service.engines._buckets import Buckets
from service.engines._cuda import Device, open_device
from service.engines._machine import Machine
from service.engines._plans import Plan, Plans, checksum, folder_of
from service.engines._tensorrt_log import open_log
from service.engines.tensorrt import library

SIZES = (128, 512, 1024)
"""Candidates of the profiles, unless told."""
_GROWTH = 4
"""Times as many rows a table of items may have as the bundle's, without another build."""
_FEW_ROWS = 1_000_000
"""Rows that it may have in any case."""
_MOST_NUMBERS = 2**31 - 1
"""Of one tensor: kernels may count them in 32 bits."""


@dataclass(frozen=True)
class Source:
    """A graph to build from."""

    graph: str
    """The bundle's file."""
    path: Path
    """What is read: that file, or its float16 form."""
    dtype: Literal["float32", "float16"]


def build(
    bundle: Bundle,
    out: Path,
    sizes: Sequence[int] = SIZES,
    *,
    version_compatible: bool = False,
    half: bool = False,
) -> Path:
    """Build a bundle's plans for this machine's GPU.

    Args:
        bundle: whose graphs.
        out: the folder of plans; the service reads `engines` in the bundle's.
        sizes: candidates of the profiles, in any order.
        version_compatible: build plans that the lean runtime of this version can load, too.
        half: build from the float16 form of the bundle's graph. The graph over item tables stays float32.

    Returns:
        The folder of this GPU's plans, which replaced the one before as a whole.

    Raises:
        EngineError: TensorRT or the GPU is missing, or the build fails; the text has TensorRT's own errors.
    """
    try:
        buckets = Buckets(tuple(sorted(set(sizes))))
    except ValueError as error:
        raise EngineError(f"--candidates: {error}") from error
    trt = cast("BuildingTensorRt", library("tensorrt"))
    device = open_device()
    capability = device.capability
    place = out / folder_of(capability)
    timing = out / f"{place.name}.timing"
    building = _Build(trt, device, bundle, buckets, version_compatible=version_compatible)
    with tempfile.TemporaryDirectory() as scratch, files.new_folder(place) as folder:
        plans = []
        for source in sources(bundle, Path(scratch) / "half" if half else None):
            measured = timing.read_bytes() if timing.is_file() else b""
            plan, data, measured = building(source, measured)
            files.write(folder / plan.file, data)
            files.write(timing, measured)
            plans.append(plan)
        Plans(
            bundle=bundle.manifest.bundle,
            tensorrt=trt.__version__,
            capability=capability,
            version_compatible=version_compatible,
            plans=tuple(plans),
        ).save(folder)
    return place


def sources(bundle: Bundle, half: Path | None) -> list[Source]:
    """What is to be built of a bundle.

    Args:
        bundle: the bundle.
        half: a new folder for the float16 form of its graph; None to build the graph itself.
    """
    manifest = bundle.manifest
    if half is None:
        found = [Source(manifest.graph, bundle.graph, "float32")]
    else:
        found = [Source(manifest.graph, half_graph.write(bundle, half), "float16")]
    if manifest.item_halves is not None:
        name = manifest.item_halves.graph
        found.append(Source(name, bundle.path / name, "float32"))
    return found


def parts(graph: Path) -> list[str]:
    """The files that a graph consists of, by name: its own, and those in which its weights lie."""
    proto = onnx.load(str(graph), load_external_data=False)
    beside = {ExternalDataInfo(each).location for each in proto.graph.initializer if uses_external_data(each)}
    return [graph.name, *sorted(beside)]


def room(rows: int, row: int) -> int:
    """Rows that a plan allows in a table of items that has `rows` of them, of `row` numbers each."""
    return max(rows, min(max(_GROWTH * rows, _FEW_ROWS), _MOST_NUMBERS // max(row, 1)))


class _Build:
    """Builds one plan after another, alike."""

    def __init__(
        self,
        trt: BuildingTensorRt,
        device: Device,
        bundle: Bundle,
        buckets: Buckets,
        *,
        version_compatible: bool,
    ) -> None:
        self._trt, self._bundle, self._buckets = trt, bundle, buckets
        self._version_compatible = version_compatible
        self._machine = Machine(trt, device, open_log(trt))
        self._builder = self._machine.made(lambda: trt.Builder(self._machine.log), "builder")

    def __call__(self, source: Source, measured: bytes) -> tuple[Plan, bytes, bytes]:
        """A plan's entry and its bytes, and a timing cache that has what this build measured, too."""
        network = self._network(source.path)
        inputs = [network.get_input(at).name for at in range(network.num_inputs)]
        bindings = Bindings.of(self._bundle.manifest, source.graph, inputs)
        most_rows = {
            name: room(len(table), math.prod(table.shape[1:]))
            for name, table in self._bundle.tables.items()
            if name in bindings.tables
        }
        config = self._builder.create_builder_config()
        # What the graph calls float32 is computed in float32, and not in TF32's ten bits.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        if self._version_compatible:
            config.set_flag(self._trt.BuilderFlag.VERSION_COMPATIBLE)
            # Else the plan holds a library, and the service has to let plans bring code for the host.
            config.set_flag(self._trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        for size in self._buckets.sizes:
            if config.add_optimization_profile(self._profile(bindings, size, most_rows)) < 0:
                raise self._error(f"{source.graph} allows no profile of {size} candidates")
        self._remember(config, measured)
        made = self._builder.build_serialized_network(network, config)
        if made is None:
            raise self._error(f"{source.graph} cannot be built")
        data, cache = bytes(made), config.get_timing_cache()
        names = parts(self._bundle.path / source.graph)
        plan = Plan(
            file=f"{Path(source.graph).stem}.plan",
            sha256=hashlib.sha256(data).hexdigest(),
            graph=source.graph,
            sources={name: checksum(self._bundle, name) or "" for name in names},
            dtype=source.dtype,
            sizes=self._buckets.sizes,
            most_rows=most_rows,
        )
        return plan, data, measured if cache is None else bytes(cache.serialize())

    def _network(self, graph: Path) -> INetworkDefinition:
        network = self._builder.create_network(
            1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parser = self._machine.made(lambda: self._trt.OnnxParser(network, self._machine.log), "parser")
        if not parser.parse_from_file(str(graph)):
            errors = "; ".join(parser.get_error(at).desc() for at in range(parser.num_errors))
            self._machine.log.take()  # the same once more
            raise EngineError(f"TensorRT cannot read {graph}: {errors or 'it does not say why'}")
        return network

    def _profile(self, bindings: Bindings, size: int, most_rows: dict[str, int]) -> IOptimizationProfile:
        profile = self._builder.create_optimization_profile()
        for spec in bindings.staged:
            if "B" in spec.shape:
                shape = shape_of(spec, size)
                profile.set_shape(spec.name, shape, shape, shape)
        for name, most in most_rows.items():
            rows, *row = self._bundle.tables[name].shape
            profile.set_shape(name, (1, *row), (rows, *row), (most, *row))
        return profile

    def _remember(self, config: IBuilderConfig, measured: bytes) -> None:
        """Use what earlier builds measured, unless that was another GPU or another TensorRT."""
        cache = config.create_timing_cache(measured)
        if cache is None or not config.set_timing_cache(cache, False):
            fresh = config.create_timing_cache(b"")
            if fresh is not None:
                config.set_timing_cache(fresh, False)
        self._machine.log.take()

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{what}: {self._machine.reason()}")

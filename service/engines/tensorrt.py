"""TensorRT: plans that `python -m export engine` built for this GPU. See `docs/tensorrt.md`.

The plans lie in the bundle's folder `engines`. TensorRT 11 and 10.16 load them, or the lean runtime of the
version that built them. No plan was ever built or run with this code: the page says what was tested, and how.
"""

from __future__ import annotations

import importlib
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from service.contract.bundle import Bundle
from service.contract.errors import BundleError, EngineError, ItemsError
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines import _plans
from service.engines._bindings import OUTPUT, Bindings, shape_of
from service.engines._buckets import Buckets
from service.engines._cuda import Device, open_device
from service.engines._lane import Lane
from service.engines._machine import Machine
from service.engines._protocol import Arrays, Handle
from service.engines._resident import Resident, Uploader
from service.engines._tensorrt_api import ICudaEngine, Runtime, TensorRt
from service.engines._tensorrt_log import open_log

LEAN = "tensorrt_lean"
MODULES = ("tensorrt", LEAN)
"""What can load plans; the first that is installed does."""
_TABLES = 2
"""Versions of item tables that stay on the device: the live one, and one that comes or goes."""


@dataclass(eq=False)
class TensorRtHandle:
    """A pack on the device; None once it was released."""

    pack: Resident | None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return 0 if self.pack is None else self.pack.nbytes


class TensorRtEngine:
    """Scores with a plan a graph. Requests of different sizes run side by side."""

    def __init__(self, trt: TensorRt, device: Device, bundle: Bundle, folder: Path) -> None:
        """An engine.

        Args:
            trt: the library.
            device: the GPU.
            bundle: whose graphs are to run.
            folder: of the bundle's plans.

        Raises:
            BundleError: there are no plans that fit the bundle, the GPU and the library.
            EngineError: the device has no memory left.
        """
        place = folder / _plans.folder_of(device.capability)
        lean = trt.__name__ == LEAN
        plans = _plans.find(bundle, place, device.capability, trt.__version__, lean=lean)
        data, machine = plans.read(place), Machine(trt, device, open_log(trt))
        runtime = machine.made(lambda: trt.Runtime(machine.log), "runtime")
        halves = bundle.manifest.item_halves
        self._graphs = {
            plan.graph: Graph(machine, runtime, plan, data[plan.graph], bundle) for plan in plans.plans
        }
        self._of_fields = self._graphs[bundle.manifest.graph]
        self._of_rows = None if halves is None else self._graphs[halves.graph]
        self._owned = tuple(spec.name for spec in bundle.manifest.inputs if spec.scope == "pack")
        self._own_tables = bundle.tables
        self._most_rows = {name: most for plan in plans.plans for name, most in plan.most_rows.items()}
        self._upload = Uploader(device)
        self._tables: tuple[tuple[Arrays, Resident], ...] = ()
        self._lock, self._uploading = threading.Lock(), threading.Lock()
        self._handles: set[TensorRtHandle] = set()

    def load(self, pack: DomainPack) -> Handle:
        """Copy a pack's tensors to the device."""
        handle = TensorRtHandle(
            self._upload({name: pack.tensors[name.removeprefix("pack.")] for name in self._owned})
        )
        with self._lock:
            self._handles.add(handle)
        return handle

    def score(self, inputs: Arrays, under: Handle) -> npt.NDArray[np.float32]:
        """Logits (B,) float32, before calibration, of one request."""
        pack = _held(under)
        graph, tables = self._of_fields, None
        if ITEM_ROWS in inputs:
            if self._of_rows is None:
                raise ValueError("the bundle has no item halves")
            graph = self._of_rows
            tables = self._resident({name: inputs.get(name, own) for name, own in self._own_tables.items()})
        return graph.score(inputs, pack, tables)

    def release(self, handle: Handle) -> None:
        """Let go of a pack's tensors; the last request under them to end frees their memory."""
        _held(handle)
        released = cast("TensorRtHandle", handle)
        with self._lock:
            released.pack = None
            self._handles.discard(released)

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            for handle in self._handles:
                handle.pack = None
            self._handles.clear()
            self._tables = ()
            if self._graphs:
                with suppress(EngineError):
                    self._upload.close()
        for graph in self._graphs.values():
            graph.close()
        self._graphs = {}

    def _resident(self, tables: Arrays) -> Resident:
        """Tables on the device. Which they are, their arrays say: a version of them never changes."""
        for known, resident in self._tables:
            if _same(known, tables):
                return resident
        for name, most in self._most_rows.items():
            if len(tables[name]) > most:
                rows = len(tables[name])
                raise ItemsError(f"{name} has {rows:,} rows; the plan was built for {most:,} at most")
        with self._uploading:
            for known, resident in self._tables:
                if _same(known, tables):
                    return resident
            resident = self._upload(tables)
            self._tables = ((tables, resident), *self._tables[: _TABLES - 1])
        return resident


class Graph:
    """One plan, read: a lane for each of its profiles."""

    def __init__(
        self, machine: Machine, runtime: Runtime, plan: _plans.Plan, data: bytes, bundle: Bundle
    ) -> None:
        """Read a plan.

        Args:
            machine: where it runs.
            runtime: what reads it.
            plan: what its table says of it.
            data: the plan.
            bundle: its graph's.

        Raises:
            BundleError: the library cannot read it, or it is not what its table says.
            EngineError: the device has no memory left.
        """
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BundleError(f"{plan.file} cannot be opened: {machine.reason()}")
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        read = [name for name in names if engine.get_tensor_mode(name) == machine.trt.TensorIOMode.INPUT]
        if set(names) - set(read) != {OUTPUT}:
            raise BundleError(f"{plan.file} cannot be opened: it has other outputs than {OUTPUT}")
        self._bindings = Bindings.of(bundle.manifest, plan.graph, read)
        _compare(machine.trt, engine, plan, self._bindings)
        self._buckets = Buckets(plan.sizes)
        self._lanes: dict[int, Lane] = {}
        for profile, size in enumerate(plan.sizes):
            context = engine.create_execution_context()
            if context is None:
                raise EngineError(f"no context for {size} candidates: {machine.reason()}")
            self._lanes[size] = Lane(context, profile, size, self._bindings, machine)
        self._engine: ICudaEngine | None = engine
        self._runtime: Runtime | None = runtime

    def score(self, inputs: Arrays, pack: Resident, tables: Resident | None) -> npt.NDArray[np.float32]:
        """Logits (B,), in runs of the largest size where there are more."""
        if self._bindings.counted not in inputs:
            raise ValueError(f"{self._bindings.counted} is missing")
        count = len(inputs[self._bindings.counted])
        logits = np.empty(count, np.float32)
        for start, stop, size in self._buckets.split(count):
            logits[start:stop] = self._lanes[size].score(inputs, start, stop, pack, tables)
        return logits

    def close(self) -> None:
        """Destroy contexts before their engine, and that before its runtime, as TensorRT wants it."""
        for lane in self._lanes.values():
            with suppress(EngineError):
                lane.close()
        self._engine = None
        self._runtime = None


def open(bundle: Bundle, threads: int) -> TensorRtEngine:  # noqa: A001, ARG001 - every option's entry looks so
    """An engine on the plans in the bundle's folder.

    Raises:
        BundleError: there is no TensorRT, no GPU, or no plan that fits both and the bundle.
    """
    try:
        return TensorRtEngine(library(), open_device(), bundle, bundle.path / _plans.FOLDER)
    except EngineError as error:
        raise BundleError(f"{bundle.graph} cannot be opened: {error}") from error


def library(*modules: str) -> TensorRt:
    """TensorRT.

    Args:
        modules: what will do, the best first; by default the whole library, else the lean runtime.

    Raises:
        EngineError: none of them is installed, or its libraries are not.
    """
    for name in modules or MODULES:
        try:
            return cast("TensorRt", cast("Any", importlib.import_module(name)))
        except ImportError as error:
            if error.name != name:  # it is there, and something that it needs is not
                raise EngineError(f"{name} cannot be imported: {error}") from error
    raise EngineError("TensorRT is not installed: see docs/tensorrt.md")


def _compare(trt: TensorRt, engine: ICudaEngine, plan: _plans.Plan, bindings: Bindings) -> None:
    dtypes = {"float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}
    wrong = [
        spec.name
        for spec in (*bindings.staged, *bindings.packs)
        if engine.get_tensor_dtype(spec.name) != dtypes[spec.dtype]
    ]
    if engine.get_tensor_dtype(OUTPUT) != dtypes["float32"]:
        wrong.append(OUTPUT)
    if wrong:
        raise BundleError(f"{plan.file} cannot be opened: another type than the graph's: {', '.join(wrong)}")
    fits = engine.num_optimization_profiles == len(plan.sizes)
    for profile, size in enumerate(plan.sizes):
        for spec in bindings.staged:
            if fits and "B" in spec.shape:
                shapes = engine.get_tensor_profile_shape(spec.name, profile)
                fits = all(tuple(shape) == shape_of(spec, size) for shape in shapes)
    if not fits:
        raise BundleError(f"{plan.file} cannot be opened: its profiles are not {list(plan.sizes)}")


def _same(known: Arrays, tables: Arrays) -> bool:
    return all(known[name] is table for name, table in tables.items())


def _held(handle: Handle) -> Resident:
    if not isinstance(handle, TensorRtHandle) or handle.pack is None:
        raise ValueError("the pack's handle was released, or is another engine's")
    return handle.pack

"""ONNX Runtime on a GPU, many requests of many domains in one launch.

Packs wait in the host's memory and lie in slots of the device while they are asked for. One thread owns the
device: it takes what has come in, writes it into one buffer, which one copy moves, replays a captured graph,
and gives the answers out. While it computes, requests gather; see `_patience` for when it waits for more.

Without a GPU the same code runs on ONNX Runtime's CPU provider, which is for tests, and slower than `ort`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.contract.bundle import Bundle
from service.contract.errors import BundleError, EngineError
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines._buckets import Buckets
from service.engines._cuda import open_device
from service.engines._device import AnyDevice
from service.engines._form import Form, stacks_in
from service.engines._host import Host
from service.engines._launch import Launch
from service.engines._line import Batch, Job, Line
from service.engines._patience import Patience
from service.engines._protocol import Arrays, Handle
from service.engines._slots import Slots
from service.engines._stacks import Stacks

_EDITIONS = 2
"""Item tables that are on the device at once: the one that answers, and the one before or to come."""
_CUDA = "CUDAExecutionProvider"
_PREPARING = threading.Lock()
"""Of the process: to make a session waits for the whole device, which fails while another engine captures."""


class Options(BaseModel):
    """What an operator decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` is `cuda` where this ONNX Runtime has the provider for it."""
    dtype: Literal["float32", "float16"] = "float32"
    """What the wide layers compute in."""
    candidates: Annotated[int, Field(ge=1)] = 128
    """Of a piece that requests are cut into."""
    pieces: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Of a launch; one of fewer is padded to the next. Each has buffers and a captured graph of its own."""
    graphs: bool = True
    """Capture launches as CUDA graphs."""
    slots: Annotated[int, Field(ge=1)] = 16384
    """Packs on the device at once, at most."""
    slot_bytes: Annotated[int, Field(ge=1)] = 4_000_000_000
    """Bytes of the device that they may take."""
    wait_us: Annotated[float, Field(ge=0, le=1000)] = 200.0
    """Microseconds, at most, that requests wait for others which are expected."""
    mixed: bool = True
    """Score requests together; without it, one after another."""

    @field_validator("pieces")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return Buckets(sizes).sizes


@dataclass(eq=False)
class Packed:
    """A pack in the host's memory, as its slot has it; None once it was released."""

    arrays: Sequence[npt.NDArray[Any]] | None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(array.nbytes for array in self.arrays or ())


class OrtCudaEngine:
    """Scores on one device, from one thread."""

    def __init__(self, bundle: Bundle, options: Options) -> None:
        self.options = options
        self._bundle = bundle
        self._buckets = Buckets(options.pieces)
        self._handles: set[Packed] = set()
        self._lock = threading.Lock()
        self._editions: OrderedDict[int, Form] = OrderedDict()
        self._closed = False
        self.line = Line(self._answer, self._fits, Patience(options.wait_us / 1e6), mixed=options.mixed)
        self._stream: int | None = None
        self._fields: Form | None = None
        try:
            self.line.do(self._open)
        except BaseException:
            self.close()
            raise

    # What any engine has.

    def load(self, pack: DomainPack) -> Handle:
        """Lay a pack out in the host's memory; its first request brings it to the device."""
        handle = Packed(self._stacks.of(pack))
        with self._lock:
            self._handles.add(handle)
        return handle

    def score(self, inputs: Arrays, under: Handle) -> npt.NDArray[np.float32]:
        """Logits (B,) float32, before calibration, of one request."""
        return self.line.ask(self._job(inputs, under))

    def submit(self, inputs: Arrays, under: Handle) -> asyncio.Future[npt.NDArray[np.float32]]:
        """As `score`, on an event loop, together with whatever else is asked."""
        return self.line.submit(self._job(inputs, under))

    def release(self, handle: Handle) -> None:
        """Let go of a pack's tensors, and of its slot once what was asked before is answered."""
        held = _held(handle)
        with self._lock:
            held.arrays = None
            self._handles.discard(held)
        self.line.later(lambda: self._slots.drop(held))

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            for handle in self._handles:
                handle.arrays = None
            self._handles.clear()
        if not self._closed:
            self._closed = True
            try:
                self.line.do(self._free)
            finally:
                self.line.close()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the device for a pack, and how many packs it has slots for."""
        return {"slot_bytes": self._stacks.slot_bytes, "slots": self._stacks.count}

    @property
    def resident(self) -> int:
        """Packs that are on the device."""
        return len(self._slots)

    def prepared(self, *, rows: bool) -> Mapping[int, Launch]:
        """Launches by number of pieces, for a benchmark: on `line` alone. Rows are of the bundle's items."""
        return self._form_of(self._bundle.tables if rows else None).launches

    def jobs(self, requests: Sequence[tuple[Arrays, Handle]]) -> list[Job]:
        """Requests as `answer` takes them."""
        return [self._job(inputs, under) for inputs, under in requests]

    def answer(self, jobs: Sequence[Job]) -> None:
        """Give jobs their logits, as many at once as fit together: on `line` alone."""
        together: Batch | None = None
        for job in jobs:
            if together is None:
                together = Batch([job], job.pieces)
            elif self._fits(together, job):
                together.add(job)
            else:
                self._answer(together.jobs)
                together = Batch([job], job.pieces)
        if together is not None:
            self._answer(together.jobs)

    # On the thread that owns the device.

    def _open(self) -> None:
        options = self.options
        has_cuda = _CUDA in onnxruntime.get_available_providers()
        self.on_gpu = options.device == "cuda" or (options.device == "auto" and has_cuda)
        if self.on_gpu:
            onnxruntime.preload_dlls()
        self._device: AnyDevice = open_device() if self.on_gpu else Host()
        self._device.ignore_captures()
        with _PREPARING:
            self._stream = self._device.stream()
            self._prepare(self._stream)

    def _prepare(self, stream: int) -> None:
        options = self.options
        graphs = self._bundle.manifest.many.get(options.dtype)
        if graphs is None:
            raise BundleError(
                f"the bundle has no graph of many requests in {options.dtype}: build it with --many"
            )
        self._of_rows = None if graphs.rows is None else self._bundle.path / graphs.rows
        sessions = [
            self._session(graph, stream)
            for graph in (self._bundle.path / graphs.fields, self._of_rows)
            if graph is not None
        ]
        stacks = list(dict.fromkeys(stack for session in sessions for stack in stacks_in(session)))
        count = Stacks.fitting(stacks, options.slot_bytes, options.slots)
        self._stacks = Stacks(self._device, stacks, count)
        self._slots = Slots(count)
        self._fields = self._form(sessions[0], {}, stream)
        self._counted = self._fields.counted
        if self._of_rows is not None:
            self._editions[_name(self._bundle.tables)] = self._form(sessions[1], self._bundle.tables, stream)

    def _free(self) -> None:
        """Let go of captured graphs, sessions and memory, and then of their stream, where they were made."""
        forms = [*self._editions.values(), *([self._fields] if self._fields else [])]
        self._editions.clear()
        self._fields = None
        with _PREPARING:
            for form in forms:
                form.close()
            if self._stream is not None:
                self._device.drop(self._stream)
                self._stream = None

    def _session(self, graph: Path, stream: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.on_gpu:
            given = {
                "user_compute_stream": str(stream),
                "enable_cuda_graph": "1" if self.options.graphs else "0",
                "use_tf32": "0",  # float32 means float32: TF32 has float16's 10 bits
                "arena_extend_strategy": "kSameAsRequested",
            }
            providers = [(_CUDA, given), *providers]
        try:
            made = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no common class but this
            raise BundleError(f"{graph} cannot be opened: {error}") from error
        if self.on_gpu and made.get_providers()[0] != _CUDA:
            raise EngineError("ONNX Runtime cannot use the GPU: CUDA's or cuDNN's libraries are not found")
        return made

    def _form(
        self, session: onnxruntime.InferenceSession, tables: Mapping[str, npt.NDArray[Any]], stream: int
    ) -> Form:
        options = self.options
        return Form(
            session,
            tables,
            self._stacks,
            self._device,
            stream,
            sizes=options.pieces,
            candidates=options.candidates,
            graphs=self.on_gpu and options.graphs,
        )

    def _form_of(self, tables: Mapping[str, npt.NDArray[Any]] | None) -> Form:
        """The graph by fields, or over these tables of items."""
        if self._fields is None or self._stream is None:
            raise ValueError("the engine is closed; its handles were released")
        if tables is None:
            return self._fields
        if self._of_rows is None:
            raise ValueError("the bundle has no item halves")
        key = _name(tables)
        found = self._editions.get(key)
        if found is None:
            with _PREPARING:
                while len(self._editions) >= _EDITIONS:
                    self._editions.popitem(last=False)[1].close()
                session = self._session(self._of_rows, self._stream)
                found = self._editions[key] = self._form(session, tables, self._stream)
        self._editions.move_to_end(key)
        return found

    def _job(self, inputs: Arrays, under: Handle) -> Job:
        held = _held(under)
        arrays = held.arrays
        if arrays is None:
            raise ValueError("the pack's handle was released, or is another engine's")
        tables = None
        if ITEM_ROWS in inputs:
            if self._of_rows is None:
                raise ValueError("the bundle has no item halves")
            tables = {
                name: inputs[name] for name in self._bundle.tables if name in inputs
            } or self._bundle.tables
            count = len(inputs[ITEM_ROWS])
        else:
            count = len(inputs[self._counted])
        return Job(inputs, held, arrays, tables, count, -(-count // self.options.candidates))

    def _fits(self, together: Batch, job: Job) -> bool:
        """Whether a job can go with others: over the same items, and within a launch and the slots."""
        return (
            together.jobs[0].edition == job.edition
            and together.pieces + job.pieces <= self._buckets.largest
            and len(together.jobs) < self._slots.count
        )

    def _answer(self, jobs: Sequence[Job]) -> None:
        first = jobs[0]
        form = self._form_of(first.tables)
        packs = [job.pack for job in jobs]
        taken = self._slots.take(packs)
        try:
            arrays = {id(job.pack): job.arrays for job in jobs}
            for pack, slot in taken.fresh:
                self._stacks.write(slot, arrays[id(pack)], cast("int", self._stream))
            if first.pieces > self._buckets.largest:
                first.logit = self._long(form, first, taken.slots[0])
                return
            launch = form.launches[self._buckets.fit(max(1, sum(job.pieces for job in jobs)))]
            at = 0
            starts = []
            for job, slot in zip(jobs, taken.slots, strict=True):
                starts.append(at * launch.candidates)
                at = launch.stage(at, slot, job.inputs, 0, job.count)
            launch()
            launch.wait()
            logit = launch.logit.copy()  # the buffer is the next launch's
            for job, start in zip(jobs, starts, strict=True):
                job.logit = logit[start : start + job.count]
        except BaseException:
            for pack, _ in taken.fresh:  # whether they are there is not known
                self._slots.drop(pack)
            raise
        finally:
            self._slots.free(packs)

    def _long(self, form: Form, job: Job, slot: int) -> npt.NDArray[np.float32]:
        """A request of more candidates than the largest launch has."""
        launch = form.launches[self._buckets.largest]
        most, parts = launch.pieces * launch.candidates, []
        for start in range(0, job.count, most):
            stop = min(start + most, job.count)
            launch.stage(0, slot, job.inputs, start, stop)
            launch()
            launch.wait()
            parts.append(launch.logit[: stop - start].copy())
        return np.concatenate(parts)


def open(bundle: Bundle, threads: int, options: Options | None = None) -> OrtCudaEngine:  # noqa: A001, ARG001 - as every option's entry
    """An engine on the bundle's graphs of many requests.

    Raises:
        BundleError: the bundle has none, or ONNX Runtime cannot read them.
        EngineError: there is no GPU where one was asked for.
    """
    return OrtCudaEngine(bundle, options or Options())


def _name(tables: Mapping[str, npt.NDArray[Any]]) -> int:
    """Of an edition, for as long as its form holds the tables: no other array is where they are."""
    return id(next(iter(tables.values())))


def _held(handle: Handle) -> Packed:
    if not isinstance(handle, Packed) or handle.arrays is None:
        raise ValueError("the pack's handle was released, or is another engine's")
    return handle

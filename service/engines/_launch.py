"""`Launch`: one graph, prepared for one number of pieces: buffers at fixed addresses, bound to its inputs.

A request's candidates are cut into pieces of C, so a graph of R requests with C candidates each is read as
one of R pieces. Requests of 100 and of 1,000 candidates go together so, and little is computed for nothing:
fewer than C candidates a request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnxruntime

from service.engines._device import AnyDevice
from service.engines._layout import Layout
from service.engines._protocol import Arrays

OUTPUT, SLOT, ORDER = "logit", "slot", "order"
_TYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int32)": np.dtype(np.int32),
}
_WARM = 3
"""Runs before a graph answers: allocations, the capture, a replay."""


@dataclass(frozen=True)
class Bound:
    """An array that is on the device already."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def inputs_of(
    session: onnxruntime.InferenceSession,
) -> dict[str, tuple[Sequence[int | str], np.dtype[Any]]]:
    """Shape and type of a session's inputs."""
    inputs = cast("Sequence[Any]", session.get_inputs())
    return {str(each.name): (list(each.shape), _TYPES[each.type]) for each in inputs}


class Launch:
    """Scores R pieces of C candidates at once."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: AnyDevice,
        stream: int,
        *,
        pieces: int,
        candidates: int,
        bound: Mapping[str, Bound],
        graph: int | None,
    ) -> None:
        """Bind everything, and capture it.

        Args:
            session: the graph's.
            device: where it computes.
            stream: on which.
            pieces: R.
            candidates: C.
            bound: inputs that do not come with a request.
            graph: a number that no other launch has, to capture it as a CUDA graph; None not to.
        """
        self.pieces, self.candidates = pieces, candidates
        self._device, self._stream = device, stream
        sizes = {"R": pieces, "C": candidates}
        inputs = inputs_of(session)
        staged = [
            (name, tuple(sizes[size] if isinstance(size, str) else size for size in shape), dtype)
            for name, (shape, dtype) in inputs.items()
            if name not in bound
        ]
        layout, out = Layout.of(staged), Layout.of([(OUTPUT, (pieces, candidates), np.float32)])
        self._in, self._out = device.pinned(layout.nbytes), device.pinned(out.nbytes)
        self._memory, self._answer = device.allocate(layout.nbytes), device.allocate(out.nbytes)
        views = layout.views(self._in)
        self.slot = views[SLOT]
        if ORDER in views:
            views[ORDER][:] = np.arange(pieces, dtype=np.int32)
        self._requests = {name: view for name, view in views.items() if name.startswith("request.")}
        self._items = {
            name: view.reshape(pieces * candidates, *view.shape[2:])
            for name, view in views.items()
            if name.startswith("item.")
        }
        self.logit = out.views(self._out)[OUTPUT].reshape(pieces * candidates)
        kind = "cpu" if graph is None and stream == 0 else "cuda"
        binding = session.io_binding()
        for name, shape, dtype in staged:
            at = self._memory.address + layout.slots[name].offset
            binding.bind_input(name, kind, 0, dtype.type, shape, at)
        for name, each in bound.items():
            if name in inputs:
                binding.bind_input(name, kind, 0, each.dtype.type, each.shape, each.address)
        binding.bind_output(OUTPUT, kind, 0, np.float32, (pieces, candidates), self._answer.address)
        self._run: tuple[onnxruntime.InferenceSession, onnxruntime.IOBinding] | None = session, binding
        self._options = onnxruntime.RunOptions()
        if kind == "cuda":
            self._options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for _ in range(_WARM):
            self()
            self.wait()

    def stage(self, at: int, slot: int, inputs: Arrays, start: int, stop: int) -> int:
        """Write candidates [start, stop) of a request from piece `at` on; the piece behind them."""
        end = at + math.ceil((stop - start) / self.candidates)
        self.slot[at:end] = slot
        for name, view in self._requests.items():
            view[at:end] = inputs[name]
        first = at * self.candidates
        for name, view in self._items.items():
            view[first : first + stop - start] = inputs[name][start:stop]
        return end

    def __call__(self) -> None:
        """Enqueue one copy there, the graph, and one copy back.

        What is behind the pieces that were written is of a request before, and computed for nothing.
        """
        self.begin()
        self.compute()
        self._device.download(self._answer.address, self._out, self._stream)

    def begin(self) -> None:
        """Enqueue the copy of what was staged."""
        self._device.upload(self._in, self._memory.address, self._stream)

    def compute(self) -> None:
        """Enqueue the graph alone."""
        if self._run is None:
            raise ValueError("the engine is closed")
        session, binding = self._run
        session.run_with_iobinding(binding, self._options)

    def close(self) -> None:
        """Let go of the session, whoever still holds this: it must be gone before its stream is."""
        self._run = None

    def wait(self) -> None:
        """Return when `logit` is there, (R * C,) float32."""
        self._device.wait(self._stream)

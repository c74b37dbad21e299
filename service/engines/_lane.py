"""`Lane`: one optimisation profile of a plan, with all that running it needs."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from service.contract.errors import EngineError
from service.engines._bindings import OUTPUT, Bindings, check, shape_of
from service.engines._buckets import pad
from service.engines._layout import Layout
from service.engines._machine import Machine
from service.engines._protocol import Arrays
from service.engines._resident import Resident
from service.engines._tensorrt_api import IExecutionContext


class Lane:
    """A context under one profile, its stream, and its buffers on both sides. One request at a time.

    A profile has one size, so shapes are set once; what is enqueued for a request is a copy, the plan, and a
    copy back. TensorRT allows a profile to no second context while one uses it, hence a lane for each.
    """

    def __init__(
        self, context: IExecutionContext, profile: int, size: int, bindings: Bindings, machine: Machine
    ) -> None:
        """A lane.

        Args:
            context: a new one.
            profile: the profile's index in the plan.
            size: its candidates.
            bindings: the plan's.
            machine: where it runs.

        Raises:
            EngineError: the device has no memory left, or TensorRT takes a shape or an address amiss.
        """
        device = machine.device
        self._bindings, self._device, self._took = bindings, device, machine.took
        self._context: IExecutionContext | None = context
        self._lock = threading.Lock()
        self._stream = device.stream()
        layout = Layout.of((spec.name, shape_of(spec, size), spec.dtype) for spec in bindings.staged)
        self._host = device.pinned(layout.nbytes)
        self._views = layout.views(self._host)
        self._inputs = device.allocate(layout.nbytes)
        answer = Layout.of([(OUTPUT, (size,), np.float32)])
        self._answer = device.pinned(answer.nbytes)
        self._logits = answer.views(self._answer)[OUTPUT]
        self._output = device.allocate(answer.nbytes)
        self._bound: list[weakref.ref[Resident] | None] = [None, None]  # the pack, the tables
        self._took(context.set_optimization_profile_async(profile, self._stream), f"profile {profile}")
        for name, slot in layout.slots.items():
            self._took(context.set_input_shape(name, slot.shape), f"{name} as {list(slot.shape)}")
            self._took(context.set_tensor_address(name, self._inputs.address + slot.offset), name)
        self._took(context.set_tensor_address(OUTPUT, self._output.address), OUTPUT)
        device.wait(self._stream)

    def score(
        self, inputs: Arrays, start: int, stop: int, pack: Resident, tables: Resident | None
    ) -> npt.NDArray[np.float32]:
        """Logits (stop - start,) of candidates [start, stop), which are at most the lane's size.

        Args:
            inputs: the request's, for all of its candidates.
            start: the first candidate.
            stop: one after the last.
            pack: the domain's.
            tables: of items, if the plan reads some.

        Raises:
            ValueError: an input is missing, or of another shape or type than the plan's.
            EngineError: TensorRT or the device fails.
        """
        with self._lock:
            if self._context is None:
                raise ValueError("the engine is closed")
            for spec in self._bindings.staged:
                if spec.name not in inputs:
                    raise ValueError(f"{spec.name} is missing")
                array, view = inputs[spec.name], self._views[spec.name]
                check(spec, array)
                if "B" in spec.shape:
                    pad(array, start, stop, view)
                else:
                    view[...] = array
            try:
                self._bind(self._context, pack, tables)
                self._device.upload(self._host, self._inputs.address, self._stream)
                self._took(self._context.execute_async_v3(self._stream), "to run")
                answer = self._logits[: stop - start]
                self._device.download(self._output.address, answer, self._stream)
                self._device.wait(self._stream)
            except BaseException:
                self._bound = [None, None]
                with suppress(EngineError):
                    self._device.wait(self._stream)  # nothing may still read buffers that the next one fills
                raise
            return answer.copy()

    def close(self) -> None:
        """Destroy the context and the stream; the buffers go with the lane."""
        with self._lock:
            if self._context is not None:
                self._context = None
                self._device.drop(self._stream)

    def _bind(self, context: IExecutionContext, pack: Resident, tables: Resident | None) -> None:
        owned = {spec.name for spec in self._bindings.packs}
        for at, (resident, names) in enumerate(((pack, owned), (tables, set(self._bindings.tables)))):
            bound = self._bound[at]
            if resident is None or (bound is not None and bound() is resident):
                continue
            for name, address in resident.addresses:
                if name not in names:
                    continue
                if at:  # a table may have any number of rows
                    shape = resident.layout.slots[name].shape
                    self._took(context.set_input_shape(name, shape), f"{name} as {list(shape)}")
                self._took(context.set_tensor_address(name, address), name)
            # Not the resident itself: a lane that rests must not keep a released pack's memory.
            self._bound[at] = weakref.ref(resident)

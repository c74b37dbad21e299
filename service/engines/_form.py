"""`Form`: a graph over one edition of the items, prepared for every number of pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.engines._cuda import Memory
from service.engines._device import AnyDevice
from service.engines._launch import Bound, Launch, inputs_of
from service.engines._stacks import LAYOUT, Stack, Stacks, stacks_of


class Form:
    """A session with its launches, and what they read beside a request.

    ONNX Runtime frees captured graphs with their session, so each edition has a session of its own.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tables: Mapping[str, npt.NDArray[Any]],
        stacks: Stacks,
        device: AnyDevice,
        stream: int,
        *,
        sizes: Sequence[int],
        candidates: int,
        graphs: bool,
    ) -> None:
        """Bring tables to the device, and prepare launches.

        Args:
            session: on that device and stream; nobody else keeps it.
            tables: of items, that the graph reads.
            stacks: of packs.
            device: where it computes.
            stream: on which.
            sizes: pieces of a launch.
            candidates: of a piece.
            graphs: capture launches.
        """
        inputs = inputs_of(session)
        bound: dict[str, Bound] = {
            stack.name: Bound(stacks.address(stack), stacks.shape(stack), stack.dtype)
            for stack in stacks_in(session)
        }
        self._held: list[object] = [*tables.values(), stacks]  # addresses, and the edition's name, are theirs
        for name, table in tables.items():
            if name in inputs:
                dtype = inputs[name][1]
                memory = _upload(np.ascontiguousarray(table, dtype), device, stream)
                self._held.append(memory)
                bound[name] = Bound(memory.address, table.shape, dtype)
        self.launches: dict[int, Launch] = {}
        # No comprehension: an error's traceback would keep its closure, and with it the session.
        for number, pieces in enumerate(sizes, 1):  # 0 is ONNX Runtime's own
            self.launches[pieces] = Launch(
                session,
                device,
                stream,
                pieces=pieces,
                candidates=candidates,
                bound=bound,
                graph=number if graphs else None,
            )
        self.counted = next(name for name in inputs if name.startswith("item."))
        """An input with a row for each candidate."""

    def close(self) -> None:
        """Let go of the session, whoever holds a launch."""
        for launch in self.launches.values():
            launch.close()


def stacks_in(session: onnxruntime.InferenceSession) -> list[Stack]:
    """The stacks that a session's graph reads."""
    return stacks_of(session.get_modelmeta().custom_metadata_map[LAYOUT], inputs_of(session))


def _upload(array: npt.NDArray[Any], device: AnyDevice, stream: int) -> Memory:
    memory = device.allocate(max(1, array.nbytes))
    device.upload(array, memory.address, stream)
    device.wait(stream)
    return memory

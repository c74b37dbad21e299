"""ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines._protocol import Arrays, Handle


@dataclass(eq=False)
class OrtHandle:
    """A pack's tensors, by graph input; None once it was released."""

    tensors: Arrays | None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(tensor.nbytes for tensor in (self.tensors or {}).values())


class OrtEngine:
    """Scores with one session a graph, which all threads share."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        halves = bundle.manifest.item_halves
        self._of_fields = session(bundle.graph, threads)
        self._of_rows = None if halves is None else session(bundle.path / halves.graph, threads)
        self._tables = bundle.tables  # read where they lie in their mapped files, as packs are
        self._handles: set[OrtHandle] = set()
        self._lock = threading.Lock()

    def load(self, pack: DomainPack) -> Handle:
        """Make a pack's tensors resident."""
        # Contiguous arrays that nobody can write to: on the CPU a session reads such arrays where they lie.
        # Measured against OrtValues and IO binding: as fast, and without state to share.
        handle = OrtHandle({f"pack.{name}": _own(tensor) for name, tensor in pack.tensors.items()})
        with self._lock:
            self._handles.add(handle)
        return handle

    def score(self, inputs: Arrays, under: Handle) -> npt.NDArray[np.float32]:
        """Logits (B,) float32, before calibration, of one request."""
        feed: dict[str, npt.NDArray[Any]] = {**inputs, **_held(under)}
        scoring = self._of_fields
        if ITEM_ROWS in inputs:
            if self._of_rows is None:
                raise ValueError("the bundle has no item halves")
            scoring = self._of_rows
            feed = {**self._tables, **feed}
        logit: npt.NDArray[np.float32] = scoring.run(["logit"], feed)[0]
        return logit

    def release(self, handle: Handle) -> None:
        """Let go of a pack's tensors."""
        _held(handle)
        with self._lock:
            _free(handle)
            self._handles.discard(cast("OrtHandle", handle))

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            for handle in self._handles:
                _free(handle)
            self._handles.clear()


def open(bundle: Bundle, threads: int) -> OrtEngine:  # noqa: A001 - every option's entry is called so
    """Sessions on the bundle's graphs.

    Raises:
        BundleError: ONNX Runtime cannot read the graph.
    """
    return OrtEngine(bundle, threads)


def session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session on one graph.

    Raises:
        BundleError: ONNX Runtime cannot read the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # What fails is raised, and logged once by who catches it: not beside that, as lines that are not JSON.
    options.log_severity_level = 4
    # Waiting threads that spin take the core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class but this
        raise BundleError(f"{graph} cannot be opened: {error}") from error


def _held(handle: Handle) -> Arrays:
    if not isinstance(handle, OrtHandle) or handle.tensors is None:
        raise ValueError("the pack's handle was released, or is another engine's")
    return handle.tensors


def _free(handle: Handle) -> None:
    cast("OrtHandle", handle).tensors = None


def _own(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers, in memory that does not change: as they lie where nobody can write to them."""
    fixed = not tensor.flags.writeable and tensor.flags.c_contiguous and tensor.flags.aligned
    return tensor if fixed else np.array(tensor)

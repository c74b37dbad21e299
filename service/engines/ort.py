"""ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.pack import DomainPack, version
from service.engines._protocol import Arrays, Handle


@dataclass(eq=False)
class OrtHandle:
    """A pack's tensors, by graph input."""

    tensors: Arrays
    version: str
    holders: int = 0
    """How many times it was loaded and not yet released; at 0 it is refused."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class OrtEngine:
    """Scores with one session, which all threads share."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Waiting threads that spin take the core from the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no common class but this
            raise BundleError(f"{bundle.graph} cannot be opened: {error}") from error
        self._handles: dict[str, OrtHandle] = {}
        self._lock = threading.Lock()

    def load(self, pack: DomainPack) -> Handle:
        """Make a pack's tensors resident, once a version."""
        key = f"{pack.domain}:{version(pack.to_bytes())}"
        with self._lock:
            handle = self._handles.get(key)
            if handle is None:
                # Arrays of our own, contiguous and aligned: on the CPU a session reads such arrays where
                # they lie. Measured against OrtValues and IO binding: as fast, and without state to share.
                tensors = {f"pack.{name}": np.array(tensor) for name, tensor in pack.tensors.items()}
                handle = self._handles[key] = OrtHandle(tensors, key)
            handle.holders += 1
            return handle

    def score(self, inputs: Arrays, under: Handle) -> npt.NDArray[np.float32]:
        """Logits (B,) float32, before calibration, of one request."""
        feed: dict[str, npt.NDArray[Any]] = {**inputs, **_held(under).tensors}
        logit: npt.NDArray[np.float32] = self._session.run(["logit"], feed)[0]
        return logit

    def release(self, handle: Handle) -> None:
        """Free a pack's tensors once all who loaded them have released them."""
        held = _held(handle)
        with self._lock:
            held.holders -= 1
            if not held.holders:
                held.tensors = {}
                del self._handles[held.version]

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            for handle in self._handles.values():
                handle.holders, handle.tensors = 0, {}
            self._handles.clear()


def open(bundle: Bundle, threads: int) -> OrtEngine:  # noqa: A001 - every option's entry is called so
    """A session on the bundle's graph.

    Raises:
        BundleError: ONNX Runtime cannot read the graph.
    """
    return OrtEngine(bundle, threads)


def _held(handle: Handle) -> OrtHandle:
    if not isinstance(handle, OrtHandle) or not handle.holders:
        raise ValueError("the pack's handle was released, or is another engine's")
    return handle

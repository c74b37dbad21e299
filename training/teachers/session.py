"""ONNX Runtime over an encoder's graph, bound to the memory that it reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Session:
    """ONNX Runtime over a graph, inputs and outputs at fixed addresses on the device.

    On a GPU its kernels are one CUDA graph where that can be captured; `note` says why not.

    Raises:
        RuntimeError: the device is a GPU, and ONNX Runtime does not run the graph there.
    """

    def __init__(self, path: Path, tokens: Tensor) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - the extra of language models does not bring it

        self._ort, self._path, self._tokens = ort, path, tokens
        self.version, self.note = str(ort.__version__), ""
        self.cuda_graph = tokens.device.type == "cuda"
        if self.cuda_graph:
            # Its libraries are those that torch has loaded.
            ort.preload_dlls()
            try:
                self._open()
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common class
                self.cuda_graph, self.note = False, words(error)
        if not self.cuda_graph:
            self._open()

    def __call__(self) -> None:
        """One pass."""
        self._session.run_with_iobinding(self._binding)

    def hidden(self) -> Tensor:
        """What the last pass gave, on the CPU."""
        return torch.from_numpy(np.array(self._given.numpy()))

    def _open(self) -> None:
        ort, at = self._ort, self._tokens.device.type
        providers: list[Any] = ["CPUExecutionProvider"]
        options = ort.SessionOptions()
        if at == "cuda":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise RuntimeError(f"onnxruntime {ort.__version__} has no CUDA provider")
            providers = [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(self.cuda_graph))})]
            if self.cuda_graph:  # what runs on the CPU cannot be captured: an error here says so first
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self._session = ort.InferenceSession(str(self._path), options, providers=providers, enable_fallback=0)
        if self._session.get_providers()[0] != providers[0][0] and at == "cuda":
            raise RuntimeError(f"onnxruntime {ort.__version__} could not load its CUDA provider")
        tokens = ort.OrtValue.ortvalue_from_numpy(self._tokens.int().cpu().numpy(), at, 0)
        of = self._session.get_outputs()[0]
        dtype = np.float16 if "float16" in of.type else np.float32
        self._given = ort.OrtValue.ortvalue_from_shape_and_type(of.shape, dtype, at, 0)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, tokens)
        self._binding.bind_ortvalue_output(of.name, self._given)
        self()


def words(error: BaseException) -> str:
    """An error in one line of at most a thousand characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]

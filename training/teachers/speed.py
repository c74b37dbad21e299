"""How fast a machine runs language models: `python -m training.teachers.speed [--out FILE] [MODEL ...]`.

Prints, and writes as JSON, the rate of a large product of matrices, and for each model, a folder in Hugging
Face's format or one of `SIZES` with random weights, the time of a forward pass over 32 texts of 256 tokens
in half precision, with the share of that rate. Where ONNX Runtime has its CUDA provider, that one, too.

Tried on a GPU up to DeBERTa, whose pass a CUDA graph cannot capture. A whole report has not been made yet,
and the part with the CUDA provider of ONNX Runtime has not run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from service.contract import files
from training import text

BATCH, LENGTH = 32, 256
"""The paper's, for 80 ms on a V100 with a model of 340 million parameters."""
_DEBERTA: dict[str, Any] = {
    "vocab_size": 128100,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "max_relative_positions": -1,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
SIZES: dict[str, Callable[[], Any]] = {
    "bert-large": lambda: transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "deberta-v3-large": lambda: transformers.DebertaV2Config(**_DEBERTA),
}
_SQUARE = 8192
_ROUNDS = 30


def measure(names: list[str]) -> dict[str, Any]:
    """Rates in FLOP/s and milliseconds a pass: medians of `_ROUNDS`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    square = _SQUARE if device.type == "cuda" else _SQUARE // 8
    matrix = torch.randn(square, square, device=device, dtype=torch.float16)
    matmul = 2 * square**3 / _seconds(lambda: matrix @ matrix, device)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "matmul_tflops": matmul / 1e12,
        "batch": BATCH,
        "length": LENGTH,
        "models": {},
    }
    for name in names:
        report["models"][name] = _model(name, device, matmul)
    return report


def _model(name: str, device: torch.device, matmul: float) -> dict[str, Any]:
    if name in SIZES:
        model: nn.Module = transformers.AutoModel.from_config(SIZES[name]())  # type: ignore[no-untyped-call]
    else:
        model = text.language_model(name, 0)
    model = model.to(device, torch.float16).eval()
    tokens = torch.randint(5, 1000, (BATCH, LENGTH), device=device)
    mask = torch.ones_like(tokens)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    # Two operations a weight and token; the products of attention are left out.
    work = 2 * BATCH * LENGTH * sum(layer.weight.numel() for layer in layers)

    def run() -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            return hidden

    seconds = _seconds(run, device)
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch_ms": seconds * 1e3,
        "share_of_matmul": work / seconds / matmul,
    }
    if device.type == "cuda":
        found["cuda_graph_ms"] = _graphed(run, device)
        found["onnxruntime_ms"] = _onnxruntime(model, tokens, mask)
    return found


def _graphed(run: Callable[[], Tensor], device: torch.device) -> float | None:
    """Milliseconds without launching kernels one by one; None for what cannot be captured."""
    try:
        return _captured(run, device) * 1e3
    except RuntimeError:  # DeBERTa copies from the CPU within a pass
        return None


def _captured(run: Callable[[], Tensor], device: torch.device) -> float:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return _seconds(graph.replay, device)


def _onnxruntime(model: nn.Module, tokens: Tensor, mask: Tensor) -> float | None:
    """Milliseconds, bound to the device's memory; None where there is no CUDA provider."""
    import onnxruntime as ort  # noqa: PLC0415 - only here

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        wrapped = _Hidden(model)
        torch.onnx.export(wrapped, (tokens, mask), str(path), dynamo=True, external_data=True, verbose=False)
        session = ort.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
        binding = session.io_binding()
        for spec, given in zip(session.get_inputs(), (tokens, mask), strict=True):
            binding.bind_ortvalue_input(
                spec.name, ort.OrtValue.ortvalue_from_numpy(given.cpu().numpy(), "cuda")
            )
        binding.bind_output(session.get_outputs()[0].name, "cuda")
        return _seconds(lambda: session.run_with_iobinding(binding), tokens.device) * 1e3


class _Hidden(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return hidden


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(_ROUNDS + 3):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[3:])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.teachers.speed", description=__doc__)
    parser.add_argument("models", nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    report = json.dumps(measure(chosen.models), indent=1)
    if chosen.out is not None:
        files.write(chosen.out, report)
    print(report)


if __name__ == "__main__":
    main()

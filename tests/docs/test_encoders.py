"""What the page says of encoders on a GPU is what the report says."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = {
    "bert-large": "BERT-large",
    "deberta-v3-large": "DeBERTa-v3-large",
    "bert-base": "BERT-base",
    "minilm": "MiniLM-L6",
}
RUNTIMES = {
    "torch": "torch",
    "torch_fixed_length": "torch, one length",
    "torch_cuda_graph": "torch, CUDA graph",
    "onnxruntime": "ONNX Runtime, CUDA graph",
}


def test_the_table_is_the_reports() -> None:
    page = Path("docs/uni-ctr.md").read_text()
    report = json.loads(Path("docs/figures/encoders.json").read_text())
    assert {*report["models"]} == {*NAMES}
    for name, model in report["models"].items():
        assert model["runtimes"]["onnxruntime"]["cuda_graph"]
        for runtime, title in RUNTIMES.items():
            if runtime not in model["runtimes"]:
                continue
            found = model["runtimes"][runtime]
            share = f"{100 * found['share_of_matmul']:.0f} %"
            cells = NAMES[name], f"{model['parameters'] / 1e6:.0f} M", title, f"{found['ms']:.1f}"
            rates = f"{found['tflops']:.0f}", share
            assert f"| {' | '.join((*cells, *rates))} |" in page
    step = report["train"]
    for text in (f"{step['step']['ms']:.0f} ms a step", f"{step['rows_per_s']:,.0f} rows/s"):
        assert text in page

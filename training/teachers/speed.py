"""How fast a machine runs language models: `python -m training.teachers.speed [--out FILE] [MODEL ...]`.

Times a forward pass over 32 texts of 256 tokens without padding, in half precision on a GPU: in torch as the
library has it, in torch as a CUDA graph, and in ONNX Runtime (`training.teachers.encoder_graph`), in turns
with a large product of matrices, whose rate the passes' rates are a share of. With `--train MODEL` a
training step of a Uni-CTR teacher as well (`training.teachers.step`). A model is a name of `encoders.SIZES`,
for random weights, or a folder in Hugging Face's format. What fails is in the report as its error, beside
what does not.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from service.contract import files
from training.teachers import encoders, rounds
from training.teachers.disentangled import FixedDeberta
from training.teachers.session import Session, words

BATCH, LENGTH = 32, 256
"""The paper's, for 80 ms on a V100 with a model of 340 million parameters."""
_ROUNDS = 30

Forward = Callable[[], Tensor]


def measure(
    names: list[str], *, train: str | None = None, seconds: float = 600, out: Path | None = None
) -> dict[str, Any]:
    """Rates and times of models, and of a training step.

    Args:
        names: encoders, as `encoders.build` takes them.
        train: the language model of a teacher, as `step.measure` takes it; None leaves that out.
        seconds: what has not begun by then is left out.
        out: where the report is written after each model.

    Returns:
        The machine and its `matmul_tflops` a second, and by `models.NAME`: `parameters`, `tflop` of a pass,
        `matmul_tflops` in turns with the model's passes, and `runtimes` with milliseconds (`ms`, `p10_ms`,
        `p90_ms`), `tflops` a second and `share_of_matmul`, or an `error`.
    """
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "precision": "float16" if device.type == "cuda" else "float32",
        "matmul_tflops": _matmul(device) / 1e12,
        "batch": BATCH,
        "length": LENGTH,
        "counted": encoders.COUNTED,
        "models": {},
    }
    parts: list[tuple[str, partial[dict[str, Any]]]]
    parts = [(name, partial(_model, name, device)) for name in names]
    if train is not None:
        parts.append(("train", partial(_train, train, device)))
    for name, part in parts:
        if time.monotonic() - began > seconds:
            found: dict[str, Any] = {"error": f"left out: {seconds:g} s were over"}
        else:
            found = _guarded(part)
        if part.func is _train:
            report["train"] = found
        else:
            report["models"][name] = found
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        report["seconds"] = time.monotonic() - began
        if out is not None:
            files.write(out, json.dumps(report, indent=1))
    return report


def _matmul(device: torch.device) -> float:
    product = rounds.Product(device, torch.float16 if device.type == "cuda" else torch.float32)
    taken = rounds.seconds({rounds.MATMUL: product}, device, _ROUNDS)
    return product.flops / statistics.median(taken[rounds.MATMUL])


def _guarded(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.monotonic()
    try:
        found = part()
    except Exception as error:  # noqa: BLE001 - one model's failure must not cost the others' figures
        found = {"error": words(error)}
    return {**found, "seconds": time.monotonic() - began}


def _train(name: str, device: torch.device) -> dict[str, Any]:
    from training.teachers import step  # noqa: PLC0415 - only here, and it takes seconds

    return step.measure(name, device)


def _model(name: str, device: torch.device) -> dict[str, Any]:
    with TemporaryDirectory() as folder, torch.inference_mode():
        return _Encoder(name, device, Path(folder)).measured()


class _Encoder:
    """A model in all its runtimes."""

    def __init__(self, name: str, device: torch.device, folder: Path) -> None:
        self.device, self.folder = device, folder
        half = device.type == "cuda"
        self.model = encoders.build(name, device, torch.float16 if half else torch.float32)
        self.tokens = torch.randint(
            5, min(1000, self.model.config.vocab_size), (BATCH, LENGTH), device=device
        )
        self.runtimes: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, rounds.Run] = {}

    def measured(self) -> dict[str, Any]:
        plain = self.plain
        self.try_("torch", lambda: plain)
        if self.model.config.model_type == "deberta-v2":
            fixed = FixedDeberta(self.model, LENGTH)
            plain = lambda: fixed(self.tokens)  # noqa: E731 - takes the place of a method
            self.try_("torch_fixed_length", lambda: plain)
        if self.device.type == "cuda":
            self.try_("torch_cuda_graph", lambda: _captured(plain))
        self.try_("onnxruntime", lambda: self.session(plain))
        product = rounds.Product(self.device, self.model.dtype)
        taken = rounds.seconds({rounds.MATMUL: product, **self.runs}, self.device, _ROUNDS)
        matmul = product.flops / statistics.median(taken.pop(rounds.MATMUL))
        work = encoders.work(self.model.config, BATCH, LENGTH)
        for name, each in taken.items():
            rate = work / statistics.median(each)
            shares = {"tflops": rate / 1e12, "share_of_matmul": rate / matmul}
            self.runtimes[name] |= {**rounds.spread(each), **shares}
        return {
            "parameters": sum(each.numel() for each in self.model.parameters()),
            "tflop": work / 1e12,
            "matmul_side": product.side,
            "matmul_tflops": matmul / 1e12,
            "runtimes": self.runtimes,
        }

    def plain(self) -> Tensor:
        hidden: Tensor = self.model(input_ids=self.tokens).last_hidden_state
        return hidden

    def try_(self, name: str, make: Callable[[], rounds.Run]) -> None:
        """Have a runtime timed if it can be made, and makes a pass."""
        self.runtimes[name] = {}
        try:
            run = make()
            run()
            rounds.synchronise(self.device)
        except Exception as error:  # noqa: BLE001 - the other runtimes' figures stay
            self.runtimes[name]["error"] = words(error)
        else:
            self.runs[name] = run

    def session(self, plain: Forward) -> Session:
        from training.teachers import encoder_graph  # noqa: PLC0415 - the extra does not bring onnx

        path = encoder_graph.write(self.model, self.folder, BATCH, LENGTH)
        session = Session(path, self.tokens)
        found: dict[str, Any] = self.runtimes["onnxruntime"]
        found |= {"version": session.version, "cuda_graph": session.cuda_graph}
        if session.note:
            found["note"] = session.note
        apart = (session.hidden().float() - plain().float().cpu()).abs()
        found |= {"greatest_difference": float(apart.max()), "mean_difference": float(apart.mean())}
        return session


def _captured(run: Forward) -> rounds.Run:
    """The same pass without launching its kernels one by one.

    Raises:
        RuntimeError: something in it cannot be captured.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> Tensor:
        graph.replay()
        return kept

    return replay


def table(report: dict[str, Any]) -> Table:
    """A row for each model and runtime."""
    found = Table(
        "model", "runtime", "ms", "p10", "p90", "TFLOP/s", "matmul TFLOP/s", "share", title=report["device"]
    )
    for name, model in report["models"].items():
        if "error" in model:
            found.add_row(name, "", model["error"])
        for runtime, each in model.get("runtimes", {}).items():
            if "error" in each:
                found.add_row(name, runtime, each["error"])
                continue
            graph = ", CUDA graph" if each.get("cuda_graph") else ""
            found.add_row(name, runtime + graph, *_numbers(each, model["matmul_tflops"]))
    if "train" in report:
        each = report["train"]
        if "error" in each:
            found.add_row("training step", "", each["error"])
        else:
            found.add_row(
                "training step", "torch", *_numbers({**each, **each["step"]}, each["matmul_tflops"])
            )
            found.caption = f"training: {each['rows_per_s']:.0f} rows/s, {each['tokens_per_s']:.0f} tokens/s"
    return found


def _numbers(each: dict[str, Any], matmul: float) -> list[str]:
    times = [f"{each[key]:.3f}" for key in ("ms", "p10_ms", "p90_ms")]
    return [*times, f"{each['tflops']:.1f}", f"{matmul:.1f}", f"{each['share_of_matmul']:.1%}"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.teachers.speed", description=__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="all sizes if neither it nor --train is there"
    )
    parser.add_argument("--train", metavar="MODEL", help="a teacher's language model, `tiny` for a trial")
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after so many")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    names = chosen.models or ([] if chosen.train else list(encoders.SIZES))
    report = measure(names, train=chosen.train, seconds=chosen.seconds, out=chosen.out)
    Console(width=160).print(table(report))


if __name__ == "__main__":
    main()

"""A servable as an ONNX graph with stable names."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

from export import folding
from export.servable import ScopedModel
from service.contract.manifest import GraphInput

OPSET = 20
OUTPUT = "logit"
WEIGHTS = "graph.onnx.data"
"""The body's weights, beside the graph: engines map them, so that processes share one copy."""
_EXTERNAL_FROM = 1024
_ROWS = 3
"""Candidates of the example: torch.export takes sizes of 0 and 1 for constants."""
_DTYPES = {"float32": torch.float32, "int32": torch.int32}


def write(model: ScopedModel, inputs: Sequence[GraphInput], path: Path) -> onnx.ModelProto:
    """Export to `path`, its weights to `WEIGHTS` in the same folder.

    Returns:
        The graph before its halves were fused, for `halves.write`; it refers to the weights' file.
    """
    proto = export(model, inputs)
    folding.fold(proto)
    save(proto, path)
    folded = onnx.load(str(path), load_external_data=False)
    fused = onnx.load(str(path), load_external_data=False)
    folding.fuse(fused)
    save_beside(fused, path)
    return folded


def export(model: nn.Module, inputs: Sequence[GraphInput]) -> onnx.ModelProto:
    """The graph of a module that takes `inputs` in order and gives logits (B,).

    The exporter writes the stack of every node, with paths of this machine, into the file; that is taken
    out, so that equal models give equal bytes wherever they are exported.
    """
    batch = torch.export.Dim("B", min=1)
    example = tuple(_example(spec) for spec in inputs)
    dynamic = tuple({0: batch} if "B" in spec.shape else {} for spec in inputs)
    with _quiet():
        program = torch.onnx.export(
            model.eval(),
            example,
            input_names=[spec.name for spec in inputs],
            output_names=[OUTPUT],
            dynamic_shapes=(dynamic,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto
    _strip(proto)
    return proto


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph, and its weights to `WEIGHTS` in the same folder."""
    onnx.save_model(
        proto,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=_EXTERNAL_FROM,
    )
    weights = path.parent / WEIGHTS
    if weights.exists():  # not for a model so small that all of it stays in the graph
        weights.chmod(0o644)  # onnx makes it readable by its owner alone
    onnx.checker.check_model(str(path), full_check=True)


def save_beside(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph that refers to weights which `save` wrote to the same folder."""
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about packages that are not needed, and torch's about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            # Several inputs share the candidates' axis, and the exporter needs its name only once.
            warnings.filterwarnings(
                "ignore", category=UserWarning, message=".*axis name: B will not be used.*"
            )
            yield
    finally:
        logger.setLevel(level)


def _example(spec: GraphInput) -> torch.Tensor:
    shape = tuple(_ROWS if size == "B" else size for size in spec.shape)
    return torch.zeros(shape, dtype=_DTYPES[spec.dtype])


def _strip(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    parts = [proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for function in proto.functions:
        parts += [function, *function.node]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")

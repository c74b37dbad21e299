"""A bundle's graph in float16: half of the weights' bytes, for engines with float16 arithmetic.

Inputs, packs among them, and the logit stay float32, so the bundle's packs fit this graph as well. The
service does not read it: what it loses in AUC is to be measured first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import onnx

from export.bundle import GRAPH
from export.graph import save
from service.contract import files
from service.contract.bundle import Bundle
from service.contract.errors import RunError

_WHOLE = ("Softmax", "LayerNormalization", "ReduceSum", "ReduceMean", "Exp", "CumSum")
"""What adds up many numbers is computed in float32."""


def write(bundle: Bundle, out: Path) -> Path:
    """Write the graph, and its weights beside it.

    Products of matrices and what stands between them are float16's; sums over many numbers, and the last
    operator of all, whose result is the logit, are float32's.

    Args:
        bundle: whose graph.
        out: a new folder.

    Returns:
        The graph's file.

    Raises:
        RunError: the folder exists.
    """
    if out.exists():
        raise RunError(f"{out} exists; choose another folder")
    # Importing it puts a folder of its modules on the path, which is nothing for the other commands.
    from onnxruntime.transformers import float16, onnx_model  # noqa: PLC0415

    whole = onnx.load(str(bundle.path / bundle.manifest.graph))
    converter = cast("Any", float16)  # it has no types
    outputs = {value.name for value in whole.graph.output}
    half: onnx.ModelProto = converter.convert_float_to_float16(
        whole,
        keep_io_types=True,
        op_block_list=[*converter.DEFAULT_OP_BLOCK_LIST, *_WHOLE],
        node_block_list=[node.name for node in whole.graph.node if outputs.intersection(node.output)],
    )
    # It casts a shared weight once for each reader, under one name, and leaves its casts at the end.
    nodes = {node.output[0]: node for node in half.graph.node}
    half.graph.ClearField("node")
    half.graph.node.extend(nodes.values())
    cast("Any", onnx_model).OnnxModel(half).topological_sort()
    with files.new_folder(out) as folder:
        save(half, folder / GRAPH)
    return out / GRAPH

"""Rewrites of a graph of several requests that leave its numbers and launch fewer kernels.

On a GPU a small operator costs its launch, whatever it computes. The rules are of algebra and know no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from export.folding import Graph, attribute, rewrite

_PARTS = 32
"""That a kernel takes as arguments."""


def condense(proto: onnx.ModelProto) -> None:
    """Rewrite what `many.batch` made, in place."""
    rewrite(proto, _concat_of_concat, _equal_parts, _dot, _sum_of_fields)


def _concat_of_concat(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Parts of a part along the same axis are parts of the whole."""
    if node.op_type != "Concat":
        return None
    parts: list[str] = []
    for name in node.input:
        inner = graph.only(name, "Concat")
        same = inner is not None and attribute(inner, "axis", 0) == attribute(node, "axis", 0)
        parts += inner.input if inner is not None and same else [name]
    if len(parts) == len(node.input):
        return None
    return [helper.make_node("Concat", parts, list(node.output), axis=int(attribute(node, "axis", 0)))]


def _equal_parts(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Parts of different lengths as equal ones: others are put together by arrays that are copied first."""
    if node.op_type != "Concat":
        return None
    axis = int(attribute(node, "axis", 0))
    sizes = [graph.shapes[name][axis] for name in node.input if len(graph.shapes.get(name, ())) > axis >= 0]
    lengths = [size for size in sizes if isinstance(size, int)]
    if len(lengths) != len(node.input) or len({*lengths}) == 1:
        return None
    unit = math.gcd(*lengths)
    if sum(lengths) // unit > _PARTS:
        return None
    made, parts = [], list[str]()
    for name, length in zip(node.input, lengths, strict=True):
        count = length // unit
        own = [f"{node.output[0]}.{len(parts) + at}" for at in range(count)] if count > 1 else [name]
        if count > 1:
            made.append(helper.make_node("Split", [name], own, axis=axis, num_outputs=count))
        parts += own
    return [*made, helper.make_node("Concat", parts, list(node.output), axis=axis)]


def _dot(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A sum of products over all axes but two, one factor having a row a request, is a matrix product."""
    product = graph.only(node.input[0], "Mul") if node.op_type == "ReduceSum" else None
    if product is None or attribute(node, "keepdims", 1):
        return None
    shape, axes = graph.shapes.get(product.output[0], ()), graph.integers(node.input[1])
    if len(shape) < 3 or axes is None or sorted(at % len(shape) for at in axes) != list(range(2, len(shape))):
        return None
    size = _known(shape[2:])
    shapes = [graph.shapes.get(name, ()) for name in product.input]
    if size is None or any(len(each) != len(shape) or each[2:] != shape[2:] for each in shapes):
        return None
    if any(each[0] != shape[0] for each in shapes) or all(each[1] != 1 for each in shapes):
        return None
    row, others = reversed(product.input) if shapes[1][1] == 1 else product.input
    # Where both have one row, which is which does not matter.
    like = node.output[0]
    to_rows, to_column = ([0, -1, size], [0, size, 1])
    names = [f"{like}.{part}" for part in ("row", "others", "product")]
    return [
        helper.make_node("Reshape", [row, _shape(graph, like, to_column)], [names[0]]),
        helper.make_node("Reshape", [others, _shape(graph, like, to_rows)], [names[1]]),
        helper.make_node("MatMul", [names[1], names[0]], [names[2]]),
        helper.make_node("Squeeze", [names[2], _shape(graph, like, [2])], [like]),
    ]


def _sum_of_fields(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The sum of (R, n, F, K) over F is a product with F unit matrices."""
    if node.op_type != "ReduceSum" or attribute(node, "keepdims", 1) or graph.integers(node.input[1]) != [2]:
        return None
    shape = graph.shapes.get(node.input[0], ())
    size = _known(shape[2:])
    if len(shape) != 4 or size is None:
        return None
    fields, width = int(shape[2]), int(shape[3])
    like, rows = node.output[0], f"{node.output[0]}.rows"
    unit = graph.constant(like, np.tile(np.eye(width, dtype=np.float32), (fields, 1)))
    return [
        helper.make_node("Reshape", [node.input[0], _shape(graph, like, [0, -1, size])], [rows]),
        helper.make_node("MatMul", [rows, unit], [like]),
    ]


def _known(sizes: Sequence[int | str]) -> int | None:
    return math.prod(int(size) for size in sizes) if all(isinstance(size, int) for size in sizes) else None


def _shape(graph: Graph, like: str, sizes: Sequence[int]) -> str:
    return graph.constant(like, np.array(sizes))

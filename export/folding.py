"""Rewrites of an exported graph that leave its numbers and cost an engine less.

Engines fold what stands in a plain network: a BatchNorm behind one linear layer, say. They do not know the
servable's form, where the first layer is a sum of two halves and the pack's tables are inputs. Each rewrite
here is a rule of algebra about operators and knows no model. Training's module is not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Shape = tuple[int | str, ...]
"""A size that is not known is a name: `B`, or one of the exporter's."""
Rewrite = Callable[["Graph", onnx.NodeProto], Sequence[onnx.NodeProto] | None]
"""What to put in the place of a node, or None. Tensors that others read keep their names."""
_NARROW = 32
"""Columns up to which a sum over fields is cheaper as a matrix product."""


def fold(proto: onnx.ModelProto) -> None:
    """Rewrite a graph in place: what makes it smaller, however it is then cut."""
    rewrite(proto, _norm, _lookup_of_lookup, _lookup_in_column, _sum_of_column, _only_column)


def fuse(proto: onnx.ModelProto) -> None:
    """Rewrite a graph in place for speed alone: halves that were apart are not to be told apart then."""
    rewrite(proto, _bias, _sum_of_fields, _lookup_of_numbers)


class Graph:
    """A graph with its constants, its shapes as far as they are known, and who makes and reads a tensor."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        # Inference needs no weights, and a model of more than 2 GB could not be given to it with them.
        inferred = onnx.shape_inference.infer_shapes(_without_weights(proto)).graph
        self.nodes: list[onnx.NodeProto] = list(proto.graph.node)
        self.outputs = [value.name for value in proto.graph.output]
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        known = [*inferred.value_info, *inferred.input, *inferred.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in known}
        self.shapes: dict[str, Shape] = {
            value.name: _shape(value) for value in known if value.type.tensor_type.HasField("shape")
        }
        for name, tensor in self.constants.items():
            self.types[name], self.shapes[name] = tensor.data_type, tuple(tensor.dims)
        self.refresh()

    def refresh(self) -> None:
        """After the nodes have changed: drop those that nothing reads, and look again at who reads what."""
        while True:
            self.makers = {name: node for node in self.nodes for name in node.output}
            self.readers = Counter(name for node in self.nodes for name in node.input)
            self.readers.update(self.outputs)
            kept = [node for node in self.nodes if any(self.readers[name] for name in node.output)]
            if len(kept) == len(self.nodes):
                break
            self.nodes = kept
        self.constants = {name: tensor for name, tensor in self.constants.items() if self.readers[name]}

    def constant(self, like: str, value: Array) -> str:
        """The name of a new constant; it says what the constant was made for."""
        name = next(found for at in count() if (found := f"{like}.{at}") not in self.shapes)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.types[name], self.shapes[name] = self.constants[name].data_type, value.shape
        return name

    def value(self, name: str) -> Array | None:
        """A constant's, or None if it is none, or stands in a file beside the graph."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def integers(self, name: str) -> list[int] | None:
        """Those of a constant, or None."""
        value = self.value(name)
        return None if value is None else value.ravel().tolist()

    def maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Who makes a tensor, if it is a node of that kind."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def only(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Who makes a tensor that has one reader, if it is a node of that kind."""
        return self.maker(name, kind) if self.readers[name] == 1 else None

    def rank(self, name: str) -> int | None:
        """How many axes it has, if that is known."""
        return len(self.shapes[name]) if name in self.shapes else None

    def many(self, name: str) -> bool:
        """Whether it has a row for each candidate."""
        return self.shapes.get(name, ())[:1] == ("B",)


def rewrite(proto: onnx.ModelProto, *rewrites: Rewrite) -> None:
    """Rewrite a graph in place, by one rule after another."""
    graph = Graph(proto)
    for rule in rewrites:
        nodes: list[onnx.NodeProto] = []
        for node in graph.nodes:
            found = rule(graph, node)
            nodes += [node] if found is None else found
        graph.nodes = nodes
        graph.refresh()
    write_back(graph, proto)


def write_back(graph: Graph, proto: onnx.ModelProto) -> None:
    """Nodes and constants to a proto, and what it says of tensors that are still there."""
    nodes, constants = list(graph.nodes), list(graph.constants.values())
    known = [value for value in proto.graph.value_info if value.name in graph.makers]
    for field in ("node", "initializer", "value_info"):
        proto.graph.ClearField(field)
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(constants)
    proto.graph.value_info.extend(known)


def _norm(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """BatchNorm behind a sum of linear layers goes into their weights; one that a domain owns stays."""
    if node.op_type != "BatchNormalization":
        return None
    layers = _summed_layers(graph, node.input[0])
    parameters = [graph.value(name) for name in node.input[1:5]]
    if layers is None or any(value is None for value in parameters):
        return None
    weight, bias, mean, var = (value.astype(np.float64) for value in parameters if value is not None)
    scale = weight / np.sqrt(var + attribute(node, "epsilon", 1e-5))
    shift = bias - mean * scale
    # The shift goes where there is a bias, which is the request's half.
    layers.sort(key=lambda layer: len(layer.input) < 3)
    for layer in layers:
        name = layer.input[1]
        matrix = numpy_helper.to_array(graph.constants[name]).astype(np.float64)
        scaled = matrix * (scale[:, None] if attribute(layer, "transB", 0) else scale)
        added = numpy_helper.to_array(graph.constants[layer.input[2]]) * scale if len(layer.input) > 2 else 0
        constants = [graph.constant(name, scaled.astype(np.float32))]
        if len(layer.input) > 2 or layer is layers[0]:
            constants.append(graph.constant(f"{name}.bias", (added + shift).astype(np.float32)))
            shift = np.zeros_like(shift)
        del layer.input[1:]
        layer.input.extend(constants)
    graph.makers[node.input[0]].output[0] = node.output[0]
    return []


def _summed_layers(graph: Graph, name: str) -> list[onnx.NodeProto] | None:
    """The linear layers, of constant weights, that a tensor is the sum of; None if it is another sum."""
    if (add := graph.only(name, "Add")) is not None:
        parts = [_summed_layers(graph, part) for part in add.input]
        return None if None in parts else [layer for part in parts if part for layer in part]
    layer = graph.only(name, "Gemm")
    if layer is None or attribute(layer, "alpha", 1.0) != 1 or attribute(layer, "beta", 1.0) != 1:
        return None
    return [layer] if all(graph.value(part) is not None for part in layer.input[1:]) else None


def _lookup_of_lookup(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Rows `ids` of the rows `group` of a table are its rows `group[ids]`: no table is made in between."""
    inner = graph.maker(node.input[0], "Gather") if _is_lookup(node) else None
    if inner is None or not _is_lookup(inner) or graph.rank(inner.input[1]) != 1:
        return None
    table, group = inner.input
    place = f"{node.output[0]}.place"
    graph.shapes[place] = graph.shapes[node.input[1]]
    return [
        helper.make_node("Gather", [group, node.input[1]], [place], axis=0),
        helper.make_node("Gather", [table, place], [node.output[0]], axis=0),
    ]


def _lookup_in_column(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Rows of a vector that was made a column are looked up in the vector."""
    column = graph.maker(node.input[0], "Unsqueeze") if _is_lookup(node) else None
    if column is None or graph.rank(column.input[0]) != 1:
        return None
    if graph.integers(column.input[1]) not in ([1], [-1]):
        return None
    found = f"{node.output[0]}.found"
    graph.shapes[found] = graph.shapes[node.input[1]]
    last = graph.constant(found, np.array([-1]))
    return [
        helper.make_node("Gather", [column.input[0], node.input[1]], [found], axis=0),
        helper.make_node("Unsqueeze", [found, last], [node.output[0]]),
    ]


def _sum_of_column(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A sum over an axis of length 1, that was added for it, is one over the others."""
    added = graph.only(node.input[0], "Unsqueeze") if node.op_type == "ReduceSum" else None
    if added is None or graph.integers(added.input[1]) != [-1] or attribute(node, "keepdims", 1):
        return None
    rank, axes = graph.rank(added.input[0]), graph.integers(node.input[1])
    if rank is None or axes is None or rank not in axes or len(axes) < 2 or min(axes) < 0:
        return None
    others = graph.constant(node.output[0], np.array([axis for axis in axes if axis != rank]))
    return [helper.make_node("ReduceSum", [added.input[0], others], [node.output[0]], keepdims=0)]


def _only_column(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Column 0 of a matrix of one column is a view, not a copy."""
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 1:
        return None
    place = graph.value(node.input[1])
    if graph.shapes.get(node.input[0], ())[1:] != (1,) or place is None or place.shape != () or place != 0:
        return None
    axis = graph.constant(node.output[0], np.array([1]))
    return [helper.make_node("Squeeze", [node.input[0], axis], [node.output[0]])]


def _bias(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """One row added to a linear layer without a bias is its bias, and what follows can be fused to it."""
    if node.op_type != "Add":
        return None
    for product, row in (node.input, reversed(node.input)):
        layer = graph.only(product, "Gemm")
        if layer is None or len(layer.input) > 2 or not graph.many(product):
            continue
        if graph.shapes.get(row) == (1, graph.shapes[product][-1]):
            fused = onnx.NodeProto()
            fused.CopyFrom(layer)
            fused.input.append(row)
            fused.output[0] = node.output[0]
            return [fused]
    return None


def _sum_of_fields(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The sum of (B, F, K) over F as a product with F unit matrices: a runtime's loop over F is slower."""
    if node.op_type != "ReduceSum" or attribute(node, "keepdims", 1) or graph.integers(node.input[1]) != [1]:
        return None
    shape = graph.shapes.get(node.input[0], ())
    if len(shape) != 3 or not graph.many(node.input[0]):
        return None
    _, fields, width = shape
    if not isinstance(fields, int) or not isinstance(width, int) or width > _NARROW:
        return None
    rows = f"{node.output[0]}.rows"
    to = graph.constant(rows, np.array([-1, fields * width]))
    ones = graph.constant(node.output[0], np.tile(np.eye(width, dtype=np.float32), (fields, 1)))
    return [
        helper.make_node("Reshape", [node.input[0], to], [rows]),
        helper.make_node("MatMul", [rows, ones], [node.output[0]]),
    ]


def _lookup_of_numbers(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Single numbers are looked up by `GatherElements`: `Gather` copies each as if it were a long row."""
    if not _is_lookup(node) or graph.rank(node.input[0]) != 1 or not graph.many(node.input[1]):
        return None
    table, places = node.input
    shape = graph.shapes[places]
    if len(shape) == 1:
        return [helper.make_node("GatherElements", [table, places], [node.output[0]], axis=0)]
    if not all(isinstance(size, int) for size in shape[1:]):
        return None
    flat, found = f"{node.output[0]}.flat", f"{node.output[0]}.numbers"
    one, all_ = graph.constant(flat, np.array([-1])), graph.constant(found, np.array([-1, *shape[1:]]))
    return [
        helper.make_node("Reshape", [places, one], [flat]),
        helper.make_node("GatherElements", [table, flat], [found], axis=0),
        helper.make_node("Reshape", [found, all_], [node.output[0]]),
    ]


def _is_lookup(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gather" and attribute(node, "axis", 0) == 0


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in sizes)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large constants are inputs of their shape; small ones say how to reshape."""
    bare = onnx.ModelProto()
    bare.opset_import.extend(proto.opset_import)
    bare.ir_version = proto.ir_version
    bare.graph.name = proto.graph.name
    bare.graph.node.extend(proto.graph.node)
    bare.graph.input.extend(proto.graph.input)
    bare.graph.output.extend(proto.graph.output)
    bare.graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and sum(tensor.dims) <= 64:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return bare

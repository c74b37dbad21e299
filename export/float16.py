"""Which operators of a graph of several requests compute in float16, and the graph in which they do.

The rule, which knows operators and no model:

* A product of matrices with a row for each candidate, and at least `NARROW` columns, is float16's: these are
  the network's wide layers, and nearly all of its arithmetic. Narrower ones are sums and choices (the logit,
  an FM's inner product, a gate in front of its softmax), and are float32's, as everything is that a request
  has once.
* What carries numbers from one of these products to another, and to nothing else, is float16's, too: a bias
  that is added, a ReLU, a reshaping, a look-up. So is what they alone read: weights, a pack's matrices,
  tables of items.
* All else is float32's: sums over fields, FM, softmax, normalisation, the logit. Inputs of requests and the
  output keep their types; calibration is applied outside of the graph, in float64.

It is made of the graph that was folded, and not in torch before export: there a BatchNorm would be rounded
before it is multiplied into a weight, and again after, and items' halves would be cut at casts. Here every
number is rounded once, from what folding computed in twice the precision.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.folding import Graph, write_back
from export.many import HALVES, LAYOUT, VALUES
from service.contract.errors import BundleError

NARROW = 8
"""Columns from which a product is one of a layer, and not a sum or a choice; tensor cores take as many."""
_CARRIERS = (
    "Add", "Concat", "Gather", "Identity", "LeakyRelu", "Relu", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def convert(proto: onnx.ModelProto, folder: Path) -> None:
    """Rewrite what `many.batch` made, in place.

    Args:
        proto: the graph.
        folder: where the file of its weights lies. It refers to that further, for those that stay.

    Raises:
        BundleError: a weight has a number beyond float16's.
    """
    _Conversion(proto, folder)()


def only_half(proto: onnx.ModelProto) -> list[str]:
    """Tensors of packs that float16 operators alone read, and may be float16's from the start."""
    graph = Graph(proto)
    half = _half(graph)
    layout = json.loads(next(each.value for each in proto.metadata_props if each.key == LAYOUT))
    return [
        name
        for source, owned in layout["values"].items()
        for name in (owned if source.startswith(VALUES) else ())
        if all(id(node) in half for node in graph.nodes if f"pack.{name}" in node.input)
    ]


def _half(graph: Graph) -> set[int]:
    """The nodes that compute in float16, by `id`."""
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        for name in node.input:
            readers[name].append(node)
    half: set[int] = set()
    for node in reversed(graph.nodes):
        (out, *others) = node.output
        if others or out in graph.outputs or graph.types.get(out) != _FLOAT:
            continue
        carries = node.op_type in _CARRIERS and (_of_candidates(graph, out) or _fixed(graph, node.input[0]))
        if _is_layer(graph, node) or (
            carries and readers[out] and all(id(each) in half for each in readers[out])
        ):
            half.add(id(node))
    return half


def _is_layer(graph: Graph, node: onnx.NodeProto) -> bool:
    columns = graph.shapes.get(node.output[0], ())[-1:]
    return (
        node.op_type == "MatMul"
        and _of_candidates(graph, node.output[0])
        and all(isinstance(size, int) and size >= NARROW for size in columns)
    )


def _of_candidates(graph: Graph, name: str) -> bool:
    return graph.shapes.get(name, ())[1:2] == ("C",)


def _fixed(graph: Graph, name: str) -> bool:
    """Whether it is a weight, or a tensor of packs."""
    return name in graph.constants or name.startswith("pack.")


class _Conversion:
    def __init__(self, proto: onnx.ModelProto, folder: Path) -> None:
        self.proto, self.folder = proto, folder
        graph = self.graph = Graph(proto)
        self.half = _half(graph)
        self.made: list[onnx.NodeProto] = []
        self.halves = {node.output[0] for node in graph.nodes if id(node) in self.half}
        """Tensors that are float16's."""
        self.halves |= {value.name for value in proto.graph.input if value.name.startswith(HALVES)}
        self._turned: dict[str, str] = {}

    def __call__(self) -> None:
        self._retype_inputs()
        for node in self.graph.nodes:
            if self._passes(node):
                self.halves.update(node.output)
                self.made.append(node)
                continue
            half = id(node) in self.half
            for at, name in enumerate(node.input):
                if name and self.graph.types.get(name) in {_FLOAT, _HALF}:
                    node.input[at] = self._as(name, half=half)
            self.made.append(node)
        self.graph.nodes = self.made
        self.graph.refresh()
        write_back(self.graph, self.proto)
        self.proto.graph.ClearField("value_info")

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether a node moves a pack's float16 values on."""
        return (
            node.op_type in {"Gather", "Split", "Reshape"}
            and node.input[0] in self.halves
            and id(node) not in self.half
        )

    def _retype_inputs(self) -> None:
        """Tables that float16 operators alone read are float16's."""
        for value in self.proto.graph.input:
            readers = [node for node in self.graph.nodes if value.name in node.input]
            mine = value.type.tensor_type.elem_type == _FLOAT and not value.name.startswith("request.")
            if mine and readers and all(id(node) in self.half for node in readers):
                value.type.tensor_type.elem_type = _HALF
                self.halves.add(value.name)

    def _as(self, name: str, *, half: bool) -> str:
        if (name in self.halves) is half:
            return name
        if name not in self._turned:
            self._turned[name] = (
                self._constant(name) if name in self.graph.constants else self._cast(name, half=half)
            )
        return self._turned[name]

    def _cast(self, name: str, *, half: bool) -> str:
        turned = f"{name}.{'half' if half else 'whole'}"
        self.made.append(helper.make_node("Cast", [name], [turned], to=_HALF if half else _FLOAT))
        return turned

    def _constant(self, name: str) -> str:
        value = numpy_helper.to_array(self.graph.constants[name], str(self.folder))
        with np.errstate(over="ignore"):
            rounded = value.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise BundleError(f"the weight {name} has numbers beyond float16's")
        return self.graph.constant(f"{name}.half", rounded)

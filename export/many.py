"""A graph of one request turned into a graph of R requests, each under a domain's pack of its own.

An engine keeps packs in slots on its device, and each request names the slot of its own. `batch` gives every
tensor that depends on the request, its items or its pack a first axis R, by a rule for each operator. It
works on the graph that is served, folded and with item halves if it has them, and knows no model. A graph
with an operator that has no rule is refused by the operator's name.

Packs come in two kinds of inputs. A tensor that is only ever looked up by row stays a table over all slots,
of which a request reads the few rows it needs. All other tensors of a pack are gathered by slot: each by
itself where there are few, else at once, as one row in which they lie behind one another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.folding import Graph, Shape, attribute
from export.graph import OUTPUT
from service.contract.errors import BundleError

SLOT = "slot"
"""Input (R,) int32: where each request's pack lies."""
VALUES, HALVES = "packs.float32", "packs.float16"
"""With what the names of inputs (S, P) begin: a row for each of S slots, of tensors that are read whole."""
APART = 12
"""Tensors of a pack, up to which each is gathered by itself: to cut a row into parts of different lengths,
ONNX Runtime's CUDA provider copies four small arrays to the device in each launch."""
ORDER = "order"
"""Input (R,) int32, where a graph has it: 0, 1, .. R - 1."""
LAYOUT = "mdctr.packs"
"""Metadata of the graph: JSON, `{"rows": {table: rows of a pack}, "values": {input: [tensors in order]}}`.
A table may have more rows than the pack's tensor; those behind it are zeros."""
_PACK = "pack."
_SAME = (
    "Abs", "Cast", "Clip", "Erf", "Exp", "Identity", "LeakyRelu", "Log", "Neg", "Not", "Reciprocal", "Relu",
    "Sigmoid", "Sqrt", "Tanh",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Sum", "Where",
)  # fmt: skip


def batch(proto: onnx.ModelProto, half: Collection[str] = ()) -> onnx.ModelProto:
    """The graph of R requests with C candidates each.

    Its inputs are `slot` (R,); the request and item inputs of the graph with R in front, items' with C for B;
    tables of items as they are; and the packs' as `LAYOUT` says. Its output is `logit` (R, C).

    Args:
        proto: a graph as `graph.write` or `halves.split` gives it: folded, not fused. It may refer to weights
            in a file; so does what is made of it.
        half: tensors of packs that are float16's.

    Raises:
        BundleError: an operator has no rule.
    """
    return _Batch(proto, half)()


class _Batch:
    def __init__(self, proto: onnx.ModelProto, half: Collection[str]) -> None:
        self.proto, self.graph, self.half = proto, Graph(proto), half
        self.made: list[onnx.NodeProto] = []
        self.batched: set[str] = set()
        """Tensors with a first axis R."""
        self.owned = {value.name for value in proto.graph.input if value.name.startswith(_PACK)}
        self._padded: dict[str, str] = {}
        """What padding would make, by name, and the table that is padded already."""
        rows = {name: self._table(name) for name in sorted(self.owned)}
        self.tables = {name: count for name, count in rows.items() if count is not None}
        """Rows of a pack, by table."""
        self._stacked = {*self.tables, *self._padded}
        self._bases: dict[tuple[str, int], str] = {}
        self._ordered = False
        self._rules: dict[str, Callable[[onnx.NodeProto], None]] = {
            **dict.fromkeys(_SAME, self._same),
            **dict.fromkeys(_BROADCAST, self._broadcast),
            **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), self._reduce),
            **dict.fromkeys(("Squeeze", "Unsqueeze"), self._axes),
            **dict.fromkeys(("Concat", "LogSoftmax", "Softmax", "Split"), self._axis),
            "BatchNormalization": self._normalize,
            "Expand": self._expand,
            "Gather": self._gather,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "Pad": self._pad,
            "Reshape": self._reshape,
            "Slice": self._slice,
            "Transpose": self._transpose,
        }

    def __call__(self) -> onnx.ModelProto:
        inputs = [value for value in self.proto.graph.input if value.name not in self.owned]
        self.batched |= {value.name for value in inputs if value.name.startswith(("request.", "item."))}
        values = {**self._unpack(VALUES, half=False), **self._unpack(HALVES, half=True)}
        for node in self.graph.nodes:
            if node.output[0] in self._padded:
                continue
            if not self.batched.isdisjoint(node.input) or any(name in self._stacked for name in node.input):
                rule = self._rules.get(node.op_type)
                if rule is None:
                    raise BundleError(
                        f"{node.op_type} of {node.output[0]} has no rule for several requests at once"
                    )
                rule(node)
                self.batched.update(node.output)
            else:
                self.made.append(node)
        made = onnx.ModelProto()
        made.CopyFrom(self.proto)
        for field in ("node", "input", "output", "value_info", "initializer"):
            made.graph.ClearField(field)
        made.graph.node.extend(self.made)
        made.graph.input.append(helper.make_tensor_value_info(SLOT, TensorProto.INT32, ["R"]))
        if self._ordered:
            made.graph.input.append(helper.make_tensor_value_info(ORDER, TensorProto.INT32, ["R"]))
        made.graph.input.extend(self._input(value) for value in inputs)
        for name in sorted(self.tables):
            _, *rest = self.graph.shapes[name]
            made.graph.input.append(
                helper.make_tensor_value_info(name, self.graph.types[name], [f"rows of {name}", *rest])
            )
        for name, owned in values.items():
            kind = TensorProto.FLOAT16 if name.startswith(HALVES) else TensorProto.FLOAT
            size = sum(self._size(f"{_PACK}{each}") for each in owned)
            made.graph.input.append(helper.make_tensor_value_info(name, kind, ["S", size]))
        made.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["R", "C"]))
        read = {name for node in self.made for name in node.input}
        made.graph.initializer.extend(tensor for name, tensor in self.graph.constants.items() if name in read)
        layout = {
            "rows": self.tables,
            "values": values,
        }
        helper.set_model_props(made, {LAYOUT: json.dumps(layout, sort_keys=True)})
        return made

    # What packs are.

    def _table(self, name: str) -> int | None:
        """Rows of a tensor of packs that is only looked up, by what differs between requests; else None."""
        rows = self.graph.shapes[name][0] if self.graph.rank(name) else None
        if not isinstance(rows, int):
            return None
        readers = [node for node in self.graph.nodes if name in node.input]
        if len(readers) == 1 and readers[0].op_type == "Pad":
            more = self._zeros_behind(readers[0])
            if more is None or self._looked_up(readers[0].output[0]) is False:
                return None
            self._padded[readers[0].output[0]] = name
            return rows + more
        return rows if self._looked_up(name) else None

    def _looked_up(self, name: str) -> bool:
        readers = [node for node in self.graph.nodes if name in node.input]
        return all(
            node.op_type == "Gather"
            and node.input[0] == name
            and attribute(node, "axis", 0) == 0
            and node.input[1] not in self.graph.constants
            for node in readers
        )

    def _zeros_behind(self, pad: onnx.NodeProto) -> int | None:
        """How many rows of zeros a node puts behind a tensor's own; None if it does something else, too."""
        rank, pads = self._rank(pad.input[0]), self.graph.integers(pad.input[1])
        value = self.graph.value(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0.0
        mode = next((each.s for each in pad.attribute if each.name == "mode"), b"constant")
        if pads is None or len(pad.input) > 3 or value is None or value != 0 or mode != b"constant":
            return None
        only_behind = all(size == 0 for at, size in enumerate(pads) if at != rank) and pads[rank] >= 0
        return pads[rank] if only_behind else None

    def _unpack(self, source: str, *, half: bool) -> dict[str, list[str]]:
        """Gather what is read whole of the packs; by input, the names of its tensors in order."""
        values = [
            name.removeprefix(_PACK)
            for name in sorted(self.owned - self.tables.keys())
            if self.graph.readers[name] and (name.removeprefix(_PACK) in self.half) is half
        ]
        if len(values) > APART:
            row = self._new("Gather", source, SLOT, axis=0)
            sizes = self._integers("sizes", [self._size(f"{_PACK}{name}") for name in values])
            parts = [f"{source}.{name}" for name in values]
            self.made.append(helper.make_node("Split", [row, sizes], parts, axis=1))
            found = {source: values}
        else:
            found = {f"{source}.{name}": [name] for name in values}
            parts = [self._new("Gather", name, SLOT, axis=0) for name in found]
        for name, part in zip(values, parts, strict=True):
            shape = self._integers(name, [0, *self._sizes(f"{_PACK}{name}")])
            self.made.append(helper.make_node("Reshape", [part, shape], [f"{_PACK}{name}"]))
            self.batched.add(f"{_PACK}{name}")
        return found

    def _sizes(self, name: str) -> list[int]:
        return [int(size) for size in self.graph.shapes[name]]

    def _size(self, name: str) -> int:
        return math.prod(self._sizes(name))

    def _input(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        name, shape = value.name, self.graph.shapes[value.name]
        if name in self.batched:
            shape = ("R", *("C" if size == "B" else size for size in shape))
        return helper.make_tensor_value_info(name, self.graph.types[name], list(shape))

    # New nodes.

    def _new(self, kind: str, *inputs: str, **attributes: int | list[int]) -> str:
        """A new node's output."""
        name = f"many.{len(self.made)}"
        node = helper.make_node(kind, list(inputs), [name])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.made.append(node)
        return name

    def _as(self, node: onnx.NodeProto, inputs: Sequence[str], **attributes: object) -> None:
        """The node with other inputs, and other values of attributes."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[:] = inputs
        kept = [each for each in made.attribute if each.name not in attributes]
        made.ClearField("attribute")
        made.attribute.extend(kept)
        made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.made.append(made)

    def _integers(self, like: str, values: Sequence[int], dtype: type = np.int64) -> str:
        return self.graph.constant(like, np.array(values, dtype))

    def _rank(self, name: str) -> int:
        """Axes of a tensor of one request."""
        rank = self.graph.rank(name)
        if rank is None:
            raise BundleError(f"the shape of {name} is not known")
        return rank

    def _shape(self, name: str) -> Shape:
        self._rank(name)
        return self.graph.shapes[name]

    def _aligned(self, name: str, rank: int) -> str:
        """With axes of length 1 behind R up to `rank`; what has no R broadcasts as it is."""
        missing = rank - self._rank(name)
        if name not in self.batched or missing <= 0:
            return name
        return self._new("Unsqueeze", name, self._integers(name, list(range(1, 1 + missing))))

    def _repeated(self, name: str) -> str:
        """With R in front, if it has none."""
        if name in self.batched:
            return name
        one = self._new("Unsqueeze", name, self._integers(name, [0]))
        made = self._new("Gather", one, self._new("Sub", SLOT, SLOT), axis=0)
        self.batched.add(made)
        self.graph.shapes[made] = self._shape(name)
        return made

    # Rules.

    def _same(self, node: onnx.NodeProto) -> None:
        if not self.batched.isdisjoint(node.input[1:]):
            raise BundleError(f"{node.op_type} of {node.output[0]} has bounds that differ between requests")
        self.made.append(node)

    def _broadcast(self, node: onnx.NodeProto) -> None:
        rank = max(map(self._rank, node.input))
        self._as(node, [self._aligned(name, rank) for name in node.input])

    def _axis(self, node: onnx.NodeProto) -> None:
        axis = int(attribute(node, "axis", -1 if "oftmax" in node.op_type else 0))
        inputs = [self._repeated(name) for name in node.input] if node.op_type == "Concat" else node.input
        self._as(node, inputs, axis=axis + (axis >= 0))

    def _axes(self, node: onnx.NodeProto) -> None:
        if len(node.input) > 1:
            axes = self._constant(node, 1)
        else:
            axes = [at for at, size in enumerate(self._shape(node.input[0])) if size == 1]
        self._as(node, [node.input[0], self._integers(node.output[0], [at + (at >= 0) for at in axes])])

    def _reduce(self, node: onnx.NodeProto) -> None:
        if len(node.input) > 1 and node.input[1]:
            axes = self._constant(node, 1)
        else:
            axes = list(range(self._rank(node.input[0])))
        self._as(node, [node.input[0], self._integers(node.output[0], [at + (at >= 0) for at in axes])])

    def _reshape(self, node: onnx.NodeProto) -> None:
        shape = self._constant(node, 1)
        if 0 in shape and attribute(node, "allowzero", 0):
            raise BundleError(f"Reshape of {node.output[0]} is to nothing")
        if shape[:1] == [-1] and all(self.graph.many(name) for name in (node.input[0], node.output[0])):
            shape[0] = 0  # as many candidates as before, which is known then by its name
        self._as(node, [node.input[0], self._integers(node.output[0], [0, *shape])], allowzero=0)

    def _expand(self, node: onnx.NodeProto) -> None:
        shape = self._constant(node, 1)
        name = self._aligned(node.input[0], len(shape))
        if all(size == 1 for size in shape):  # nothing to repeat
            self.made.append(helper.make_node("Identity", [name], list(node.output)))
        else:
            self._as(node, [name, self._integers(node.output[0], [1, *shape])])

    def _transpose(self, node: onnx.NodeProto) -> None:
        rank = self._rank(node.input[0])
        given = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
        perm = list(reversed(range(rank))) if given is None else given
        self._as(node, node.input, perm=[0, *(at + 1 for at in perm)])

    def _slice(self, node: onnx.NodeProto) -> None:
        data, *bounds = node.input
        rank = self._rank(data)
        axes = self._constant(node, 3) if len(node.input) > 3 else list(range(rank))
        moved = self._integers(node.output[0], [at % rank + 1 for at in axes])
        self._as(node, [data, *bounds[:2], moved, *bounds[3:]])

    def _pad(self, node: onnx.NodeProto) -> None:
        data, _, *rest = node.input
        pads, rank = self._constant(node, 1), self._rank(data)
        axes = self._constant(node, 3) if len(node.input) > 3 and node.input[3] else list(range(rank))
        before, after = [0] * (rank + 1), [0] * (rank + 1)
        for at, axis in enumerate(axes):
            before[axis % rank + 1], after[axis % rank + 1] = pads[at], pads[at + len(axes)]
        self._as(node, [data, self._integers(node.output[0], [*before, *after]), *rest[:1]])

    def _gather(self, node: onnx.NodeProto) -> None:
        data, places = node.input
        axis = int(attribute(node, "axis", 0))
        if data in self._stacked:
            table = self._padded.get(data, data)
            place = self._new("Add", places, self._first(SLOT, self.tables[table], self._rank(places)))
            self._as(node, [table, place], axis=0)
        elif places not in self.batched:
            self._as(node, node.input, axis=axis + (axis >= 0))
        elif axis != 0:
            raise BundleError(f"Gather of {node.output[0]} looks up another axis than rows")
        elif data not in self.batched:
            self._as(node, node.input)
        else:
            self._among_all(node)

    def _among_all(self, node: onnx.NodeProto) -> None:
        """Rows of a tensor of each request, looked up in all of them one behind another."""
        data, places = node.input
        rows, *rest = self._shape(data)
        if not isinstance(rows, int):
            raise BundleError(f"Gather of {node.output[0]} looks up candidates")
        self._ordered = True
        flat = self._new("Reshape", data, self._integers(data, [-1, *(int(size) for size in rest)]))
        self._as(node, [flat, self._new("Add", places, self._first(ORDER, rows, self._rank(places)))], axis=0)

    def _first(self, of: str, rows: int, rank: int) -> str:
        """The first row of each request among tensors of so many rows, (R, 1, ..)."""
        if (of, rows) not in self._bases:
            self._bases[of, rows] = self._new("Mul", of, self._integers(of, [rows], np.int32))
        return self._new("Unsqueeze", self._bases[of, rows], self._integers(of, list(range(1, 1 + rank))))

    def _matmul(self, node: onnx.NodeProto) -> None:
        left, right = node.input
        if min(self._rank(left), self._rank(right)) < 2:
            self._of_vector(node)
            return
        rank = max(self._rank(left), self._rank(right))
        # A (C, 1, K) against a matrix of each request is (C, K) against it, and one product instead of C.
        if self._shape(left)[1:2] == (1,) and (self._rank(left), self._rank(right)) == (3, 2):
            flat = self._new("Squeeze", left, self._integers(left, [2]))
            product = self._new("MatMul", flat, right)
            self.made.append(
                helper.make_node("Unsqueeze", [product, self._integers(left, [2])], list(node.output))
            )
            return
        if right in self.batched:
            # One matrix against many would be a product by arrays of pointers, copied in each launch.
            left = self._repeated(left)
        self._as(node, [self._aligned(left, rank), self._aligned(right, rank)])

    def _of_vector(self, node: onnx.NodeProto) -> None:
        """A matrix and a vector of each request: the vector is a matrix of one column."""
        left, right = node.input
        if self._rank(left) < 2 or self._rank(left) > 2:
            raise BundleError(f"MatMul of {node.output[0]} has a vector on its left, or more than a matrix")
        if right not in self.batched:
            self.made.append(node)
            return
        last = self._integers(node.output[0], [2])
        product = self._new("MatMul", self._repeated(left), self._new("Unsqueeze", right, last))
        self.made.append(helper.make_node("Squeeze", [product, last], list(node.output)))

    def _gemm(self, node: onnx.NodeProto) -> None:
        left, right, *added = node.input
        if any(attribute(node, name, 1.0) != 1 for name in ("alpha", "beta")):
            raise BundleError(f"Gemm of {node.output[0]} is scaled")
        parts = []
        for name, turned in ((left, attribute(node, "transA", 0)), (right, attribute(node, "transB", 0))):
            perm = [0, 2, 1] if name in self.batched else [1, 0]
            parts.append(self._new("Transpose", name, perm=perm) if turned else name)
        if not added:
            self.made.append(helper.make_node("MatMul", parts, list(node.output)))
            return
        product = self._new("MatMul", *parts)
        self.made.append(helper.make_node("Add", [product, self._aligned(added[0], 2)], list(node.output)))

    def _normalize(self, node: onnx.NodeProto) -> None:
        """As x * a + b with a = weight / sqrt(var + epsilon) and b = bias - mean * a."""
        x, weight, bias, mean, var = node.input
        epsilon = self.graph.constant(node.output[0], np.array(attribute(node, "epsilon", 1e-5), np.float32))
        scale = self._new("Div", weight, self._new("Sqrt", self._new("Add", var, epsilon)))
        shift = self._new("Sub", bias, self._new("Mul", mean, scale))
        if not self.batched.isdisjoint(node.input[1:]):
            axis = self._integers(node.output[0], [1])
            scale, shift = (self._new("Unsqueeze", each, axis) for each in (scale, shift))
        scaled = self._new("Mul", x, scale)
        self.made.append(helper.make_node("Add", [scaled, shift], list(node.output)))

    def _constant(self, node: onnx.NodeProto, at: int) -> list[int]:
        values = self.graph.integers(node.input[at])
        if values is None:
            raise BundleError(f"{node.op_type} of {node.output[0]} has a shape that depends on its inputs")
        return values

"""Graphs of many requests beside those they are made of, which onnx's own reference computes one by one."""

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.condense import condense
from export.graph import OPSET
from export.many import LAYOUT, ORDER, SLOT, VALUES, batch
from service.contract.errors import BundleError

R, B, S = 5, 4, 3
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
RNG = np.random.default_rng(0)
PACK: dict[str, tuple[Any, ...]] = {
    "pack.w": (6, 3),
    "pack.row": (1, 6),
    "pack.b": (3,),
    "pack.table": (9,),
    "pack.wide": (9, 2),
}
NUMBERS: dict[str, tuple[Any, ...]] = {"request.numbers": (1, 6), "item.numbers": ("B", 6)}
IDS: dict[str, tuple[Any, ...]] = {"request.ids": (1, 2), "item.ids": ("B", 2)}


def model(nodes, constants=None, out=("B",)):
    """A graph of one request over numbers, ids and a pack."""
    read = {name for node in nodes for name in node.input}
    inputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for kind, group in ((TensorProto.FLOAT, {**NUMBERS, **PACK}), (TensorProto.INT32, IDS))
        for name, shape in group.items()
        if name in read
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        inputs,
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return onnx.shape_inference.infer_shapes(made)


def compare(one, *, condensed=True):
    """The graph of many requests, after it was found to give what `one` gives for each."""
    many = batch(one)
    if condensed:
        condense(many)
    onnx.checker.check_model(many, full_check=True)
    packs = [
        {name: RNG.normal(size=shape).astype(np.float32) for name, shape in PACK.items()} for _ in range(S)
    ]
    slots = RNG.integers(0, S, R).astype(np.int32)
    numbers = {
        name: RNG.normal(size=(R, *(B if size == "B" else size for size in shape))).astype(np.float32)
        for name, shape in NUMBERS.items()
    }
    ids = {
        name: RNG.integers(0, 9, (R, *(B if size == "B" else size for size in shape))).astype(np.int32)
        for name, shape in IDS.items()
    }
    layout = json.loads(next(each.value for each in many.metadata_props if each.key == LAYOUT))
    feed = {SLOT: slots, ORDER: np.arange(R, dtype=np.int32), **numbers, **ids}
    for name, rows in layout["rows"].items():
        more = [(0, rows - len(packs[0][name])), *[(0, 0)] * (packs[0][name].ndim - 1)]
        feed[name] = np.concatenate([np.pad(pack[name], more) for pack in packs])
    for name, owned in layout["values"].items():
        feed[name] = np.stack(
            [np.concatenate([pack[f"pack.{each}"].ravel() for each in owned]) for pack in packs]
        )
    wanted = {value.name for value in many.graph.input}
    found: Any = ReferenceEvaluator(many).run(
        None, {name: each for name, each in feed.items() if name in wanted}
    )
    alone = ReferenceEvaluator(one)
    wanted = {value.name for value in one.graph.input}
    (found,) = found
    for at in range(R):
        given = {**{name: each[at] for name, each in {**numbers, **ids}.items()}, **packs[slots[at]]}
        (expected,) = alone.run(None, {name: each for name, each in given.items() if name in wanted})
        np.testing.assert_allclose(np.asarray(found[at]), np.asarray(expected), rtol=1e-5, atol=1e-5)
    return many


def node(kind, inputs, output="logit", **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def kinds(many):
    return [each.op_type for each in many.graph.node]


LAST = {"last": np.array([-1])}
CASES = {
    "a row against candidates": [
        node("Mul", "request.numbers item.numbers", "x"),
        node("ReduceSum", "x last", keepdims=0),
    ],
    "a pack's vector": [
        node("MatMul", "item.numbers pack.w", "x"),
        node("Add", "x pack.b", "y"),
        node("ReduceSum", "y last", keepdims=0),
    ],
    "a layer of the pack's": [
        node("Transpose", "pack.w", "t", perm=[1, 0]),
        node("Gemm", "item.numbers t pack.b", "x", transB=1),
        node("Relu", "x", "y"),
        node("ReduceMax", "y last", keepdims=0),
    ],
    "a layer of everyone's": [
        node("Gemm", "item.numbers w b", "x"),
        node("Softmax", "x", "y", axis=1),
        node("Gather", "y one", axis=1),
    ],
    "the request's half": [
        node("Gemm", "request.numbers pack.w pack.b", "q"),
        node("Gemm", "item.numbers pack.w q", "x"),
        node("Slice", "x zero_ two_ one_", "y"),
        node("ReduceSum", "y last", keepdims=0),
    ],
    "concatenated with what is everyone's": [
        node("Concat", "request.numbers pack.row row", "x", axis=0),
        node("ReduceSum", "x zero_", "s", keepdims=1),
        node("Mul", "s item.numbers", "y"),
        node("ReduceSum", "y last", keepdims=0),
    ],
    "three axes": [
        node("Unsqueeze", "item.numbers one_", "u"),
        node("Reshape", "u shape", "x"),
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("Split", "t", "left right", axis=1, num_outputs=2),
        node("Sub", "left right", "d"),
        node("ReduceSum", "d both", keepdims=0),
    ],
    "many of one column": [
        node("Unsqueeze", "item.numbers one_", "u"),
        node("MatMul", "u pack.w", "x"),
        node("Squeeze", "x one_", "y"),
        node("ReduceMean", "y last", keepdims=0),
    ],
    "everyone's matrix against the pack's": [
        node("MatMul", "w_t pack.w", "m"),
        node("Gemm", "item.numbers w b", "x"),
        node("MatMul", "x m", "y"),
        node("ReduceSum", "y last", keepdims=0),
    ],
    "a pack's vector on the right": [
        node("Squeeze", "pack.row zero_", "v"),
        node("MatMul", "item.numbers v"),
    ],
    "normalised by the pack": [
        node("Gemm", "item.numbers w b", "x"),
        node("Mul", "pack.b pack.b", "v"),
        node("BatchNormalization", "x pack.b b pack.b v", "y", epsilon=0.1),
        node("ReduceSum", "y last", keepdims=0),
    ],
    "a row that is repeated for nobody": [
        node("Expand", "pack.row ones", "e"),
        node("Mul", "e item.numbers", "x"),
        node("Clip", "x low high", "y"),
        node("ReduceSum", "y last", keepdims=0),
    ],
}
CONSTANTS = {
    **LAST,
    "w": RNG.normal(size=(6, 3)).astype(np.float32),
    "w_t": RNG.normal(size=(3, 6)).astype(np.float32),
    "b": RNG.normal(size=3).astype(np.float32),
    "row": RNG.normal(size=(1, 6)).astype(np.float32),
    "one": np.array(1),
    "one_": np.array([1]),
    "two_": np.array([2]),
    "zero_": np.array([0]),
    "both": np.array([1, 2]),
    "ones": np.array([1, 1]),
    "shape": np.array([-1, 3, 2]),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.5, np.float32),
}


def split_outputs(nodes):
    """A node of several outputs says them with blanks between."""
    for each in nodes:
        names = [part for name in each.output for part in name.split()]
        each.output[:] = names
    return nodes


def constants_of(nodes):
    read = {name for each in nodes for name in each.input}
    return {name: value for name, value in CONSTANTS.items() if name in read}


@pytest.mark.parametrize("name", CASES)
def test_each_request_has_what_it_has_alone(name):
    nodes = split_outputs(CASES[name])
    compare(model(nodes, constants_of(nodes)))


def lookups(table):
    return [
        node("Gather", f"{table} request.ids", "q"),
        node("Gather", f"{table} item.ids", "i"),
        node("ReduceSum", "q ends", "qs", keepdims=0),
        node("ReduceSum", "i ends", "is", keepdims=0),
        node("Add", "qs is"),
    ]


@pytest.mark.parametrize("table", ["pack.table", "pack.wide"])
def test_only_the_rows_that_are_asked_for_are_read_of_a_packs_table(table):
    ends = [1, 2][: len(PACK[table])]
    many = compare(model(lookups(table), {"ends": np.array(ends)}))
    assert json.loads(many.metadata_props[0].value) == {"rows": {table: 9}, "values": {}}
    (shape,) = [value.type.tensor_type.shape for value in many.graph.input if value.name == table]
    assert shape.dim[0].dim_param  # over all slots, and not with R in front
    assert len(shape.dim) == len(PACK[table])


def test_a_table_is_padded_where_it_lies():
    nodes = [node("Pad", "pack.table more nothing", "p"), *lookups("p")]
    made = model(nodes, {"more": np.array([0, 2]), "nothing": np.array(0, np.float32), "ends": np.array([1])})
    many = compare(made)
    assert json.loads(many.metadata_props[0].value)["rows"] == {"pack.table": 11}
    assert "Pad" not in kinds(many)


def test_a_table_that_is_used_otherwise_too_is_looked_up_among_all():
    nodes = [node("Mul", "pack.table pack.table", "p"), *lookups("p")]
    many = compare(model(nodes, {"ends": np.array([1])}))
    assert ORDER in [value.name for value in many.graph.input]


def test_many_tensors_of_a_pack_are_gathered_at_once(monkeypatch):
    monkeypatch.setattr("export.many.APART", 1)
    nodes = split_outputs(CASES["the request's half"])
    many = compare(model(nodes, constants_of(nodes)))
    layout = json.loads(many.metadata_props[0].value)
    assert layout == {"rows": {}, "values": {VALUES: ["b", "w"]}}
    (shape,) = [value.type.tensor_type.shape for value in many.graph.input if value.name == VALUES]
    assert shape.dim[1].dim_value == 3 + 6 * 3


def test_few_tensors_of_a_pack_are_gathered_each_by_itself():
    nodes = split_outputs(CASES["the request's half"])
    many = compare(model(nodes, constants_of(nodes)))
    assert json.loads(many.metadata_props[0].value)["values"] == {
        f"{VALUES}.b": ["b"],
        f"{VALUES}.w": ["w"],
    }
    assert "Split" not in kinds(many)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            [
                node("Tanh", "item.numbers", "x"),
                node("CumSum", "x one", "y"),
                node("ReduceSum", "y last", keepdims=0),
            ],
            "CumSum",
        ),
        (
            [node("Gemm", "item.numbers pack.w", "x", alpha=2.0), node("ReduceSum", "x last", keepdims=0)],
            "scaled",
        ),
        (
            [
                node("Shape", "item.numbers", "s"),
                node("Reshape", "item.numbers s", "x"),
                node("ReduceSum", "x last", keepdims=0),
            ],
            "Shape|depends",
        ),
    ],
)
def test_what_has_no_rule_is_refused_by_its_name(nodes, words):
    with pytest.raises(BundleError, match=words):
        batch(model(nodes, constants_of(nodes)))

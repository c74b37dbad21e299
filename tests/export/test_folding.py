"""Each rewrite on the smallest graph that it is for, against what the graph gave before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import folding

Node = tuple[Any, ...]
RANDOM = np.random.default_rng(0)
Arrays = Mapping[str, npt.NDArray[Any]]


def graph(
    nodes: Sequence[Node], inputs: Mapping[str, Sequence[int | str]], constants: Arrays
) -> onnx.ModelProto:
    """Of nodes (kind, inputs, output, attributes), whose last output counts. Ids are integers."""
    made = [
        helper.make_node(kind, read, [output], **(attributes[0] if attributes else {}))
        for kind, read, output, *attributes in nodes
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT32 if "ids" in name else TensorProto.FLOAT, shape)
        for name, shape in inputs.items()
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    out = [helper.make_tensor_value_info(made[-1].output[0], TensorProto.FLOAT, None)]
    proto = helper.make_model(
        helper.make_graph(made, "small", values, out, tensors),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return onnx.shape_inference.infer_shapes(proto)


def run(proto: onnx.ModelProto, given: Arrays) -> npt.NDArray[Any]:
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(given))[0])


def rewritten(proto: onnx.ModelProto, given: Arrays) -> Counter[str]:
    """Kinds of nodes after rewriting, having checked that the numbers are the same."""
    before = run(proto, given)
    folding.fold(proto)
    folding.fuse(proto)
    np.testing.assert_allclose(run(proto, given), before, rtol=1e-5, atol=1e-5)
    return Counter(node.op_type for node in proto.graph.node)


def numbers(*shape: int) -> npt.NDArray[np.float32]:
    return RANDOM.normal(size=shape).astype(np.float32)


def axes(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


HALVES: list[Node] = [
    ("Gemm", ["r", "w_r", "b_r"], "of_r", {"transB": 1}),
    ("Gemm", ["x", "w_x"], "of_x", {"transB": 1}),
    ("Add", ["of_r", "of_x"], "sum"),
    ("BatchNormalization", ["sum", "scale", "shift", "mean", "var"], "normed"),
    ("Relu", ["normed"], "out"),
]
WEIGHTS = {"w_r": numbers(4, 3), "b_r": numbers(4), "w_x": numbers(4, 2)}
NORM = {"scale": numbers(4), "shift": numbers(4), "mean": numbers(4), "var": np.abs(numbers(4))}
GIVEN = {"r": numbers(1, 3), "x": numbers(5, 2)}


def test_a_norm_behind_a_sum_of_two_layers_goes_into_them() -> None:
    proto = graph(HALVES, {"r": [1, 3], "x": ["B", 2]}, {**WEIGHTS, **NORM})
    assert rewritten(proto, GIVEN) == {"Gemm": 2, "Relu": 1}
    assert {tuple(tensor.dims) for tensor in proto.graph.initializer} == {(4, 3), (4,), (4, 2)}


@pytest.mark.parametrize("owned", [*NORM, "w_r", "w_x"])
def test_a_norm_or_layer_that_a_domain_owns_stays(owned: str) -> None:
    constants = {**WEIGHTS, **NORM}
    given = {**GIVEN, owned: constants.pop(owned)}
    proto = graph(HALVES, {"r": [1, 3], "x": ["B", 2], owned: given[owned].shape}, constants)
    assert rewritten(proto, given)["BatchNormalization"] == 1


def test_a_layer_whose_output_is_read_elsewhere_keeps_its_weights() -> None:
    nodes = [*HALVES, ("Add", ["out", "of_x"], "both")]
    proto = graph(nodes, {"r": [1, 3], "x": ["B", 2]}, {**WEIGHTS, **NORM})
    assert rewritten(proto, GIVEN)["BatchNormalization"] == 1


def test_single_weights_are_looked_up_and_summed_without_a_column() -> None:
    nodes = [
        ("Unsqueeze", ["w", "one"], "column"),
        ("Gather", ["column", "ids"], "found"),
        ("ReduceSum", ["found", "both"], "out", {"keepdims": 0}),
    ]
    constants = {"one": axes(1), "both": axes(1, 2)}
    given = {"w": numbers(9), "ids": RANDOM.integers(0, 9, (5, 3)).astype(np.int32)}
    found = rewritten(graph(nodes, {"w": [9], "ids": ["B", 3]}, constants), given)
    assert found == {"Reshape": 2, "GatherElements": 1, "ReduceSum": 1}


def test_a_vector_that_was_made_a_row_is_not_looked_up_in() -> None:
    nodes = [("Unsqueeze", ["w", "first"], "row"), ("Gather", ["row", "ids"], "out")]
    given = {"w": numbers(9), "ids": np.zeros(5, np.int32)}
    for first in (0, -2):
        found = rewritten(graph(nodes, {"w": [9], "ids": ["B"]}, {"first": axes(first)}), given)
        assert found == {"Unsqueeze": 1, "Gather": 1}


def test_rows_of_a_table_of_shared_weights_are_looked_up_where_they_are_shared() -> None:
    nodes = [
        ("Gather", ["w", "group"], "table"),
        ("Gather", ["table", "ids"], "out"),
    ]
    group = RANDOM.integers(0, 4, 9).astype(np.int32)
    given = {"w": numbers(4, 2), "ids": RANDOM.integers(0, 9, (5, 3)).astype(np.int32)}
    proto = graph(nodes, {"w": [4, 2], "ids": ["B", 3]}, {"group": group})
    rewritten(proto, given)
    # What is looked up in the weights is as many rows as there are ids, not as the vocabulary has.
    (reader,) = (node for node in proto.graph.node if "w" in node.input)
    assert reader.input[1] != "group"


def test_a_sum_over_fields_is_a_product_where_it_has_a_row_for_each_candidate() -> None:
    nodes = [("ReduceSum", ["x", "one"], "out", {"keepdims": 0})]
    many = graph(nodes, {"x": ["B", 7, 16]}, {"one": axes(1)})
    assert rewritten(many, {"x": numbers(5, 7, 16)}) == {"Reshape": 1, "MatMul": 1}
    one = graph(nodes, {"x": [1, 7, 16]}, {"one": axes(1)})
    assert rewritten(one, {"x": numbers(1, 7, 16)}) == {"ReduceSum": 1}
    wide = graph(nodes, {"x": ["B", 7, 64]}, {"one": axes(1)})
    assert rewritten(wide, {"x": numbers(5, 7, 64)}) == {"ReduceSum": 1}


def test_the_only_column_is_a_view() -> None:
    nodes = [("Gather", ["x", "first"], "out", {"axis": 1})]
    proto = graph(nodes, {"x": ["B", 1]}, {"first": np.array(0)})
    assert rewritten(proto, {"x": numbers(5, 1)}) == {"Squeeze": 1}
    proto = graph(nodes, {"x": ["B", 2]}, {"first": np.array(0)})
    assert rewritten(proto, {"x": numbers(5, 2)}) == {"Gather": 1}

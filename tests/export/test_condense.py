"""Fewer kernels, the same numbers: onnx's own reference computes both."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.condense import condense
from export.graph import OPSET


def check(nodes, shapes, constants, expected):
    """Condense, compare, and look at what is left."""
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    rng = np.random.default_rng(0)
    sizes: dict[object, int] = {"R": 3, "C": 4}
    feed = {
        name: rng.normal(size=[sizes.get(size) or size for size in shape]).astype(np.float32)
        for name, shape in shapes.items()
    }
    before: Any = ReferenceEvaluator(model).run(None, feed)
    condense(model)
    onnx.checker.check_model(model)
    assert [
        node.op_type for node in model.graph.node if node.op_type not in {"Reshape", "Squeeze"}
    ] == expected
    after: Any = ReferenceEvaluator(model).run(None, feed)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-5)


def dot(left, right, axes):
    return [
        helper.make_node("Mul", [left, right], ["x"]),
        helper.make_node("ReduceSum", ["x", axes], ["logit"], keepdims=0),
    ]


def test_an_inner_product_with_the_requests_row_is_a_product_of_matrices():
    shapes = {"a": ("R", 1, 5), "b": ("R", "C", 5)}
    check(dot("a", "b", "last"), shapes, {"last": np.array([2])}, ["MatMul"])
    check(dot("b", "a", "last"), shapes, {"last": np.array([-1])}, ["MatMul"])


def test_a_square_over_several_axes_is_one_too():
    check(dot("a", "a", "axes"), {"a": ("R", 1, 2, 3)}, {"axes": np.array([2, 3])}, ["MatMul"])


def test_an_inner_product_of_candidates_stays():
    check(dot("a", "a", "last"), {"a": ("R", "C", 5)}, {"last": np.array([2])}, ["Mul", "ReduceSum"])


def test_a_sum_over_fields_is_a_product_of_matrices():
    nodes = [helper.make_node("ReduceSum", ["a", "axes"], ["logit"], keepdims=0)]
    check(nodes, {"a": ("R", "C", 3, 4)}, {"axes": np.array([2])}, ["MatMul"])


def test_parts_of_parts_are_put_together_at_once():
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=2),
        helper.make_node("Concat", ["x", "c"], ["logit"], axis=2),
    ]
    check(nodes, {"a": ("R", 1, 2), "b": ("R", 1, 2), "c": ("R", 1, 2)}, {}, ["Concat"])
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=2),
        helper.make_node("Concat", ["x", "c"], ["logit"], axis=1),
    ]
    check(nodes, {"a": ("R", 1, 2), "b": ("R", 1, 2), "c": ("R", 1, 4)}, {}, ["Concat", "Concat"])


def test_parts_of_different_lengths_are_put_together_of_equal_ones():
    nodes = [helper.make_node("Concat", ["a", "b", "c"], ["logit"], axis=1)]
    check(nodes, {"a": ("R", 2, 5), "b": ("R", 4, 5), "c": ("R", 6, 5)}, {}, ["Split", "Split", "Concat"])
    check(nodes, {"a": ("R", 40, 5), "b": ("R", 1, 5), "c": ("R", 1, 5)}, {}, ["Concat"])  # too many of them

"""Which operators compute in float16; expected numbers are numpy's, rounded where the rule says so."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import float16, precision
from export.graph import OPSET
from export.many import LAYOUT, batch
from service.contract.errors import BundleError
from service.contract.pack import DomainPack, Golden
from training import metrics

RNG = np.random.default_rng(0)
WEIGHTS = {
    "table": RNG.normal(size=(50, 4)).astype(np.float32),
    "w1": RNG.normal(size=(4, 16)).astype(np.float32),
    "b1": RNG.normal(size=16).astype(np.float32),
    "w3": RNG.normal(size=(8, 1)).astype(np.float32),
}


def one(weights=WEIGHTS):
    """Fields -> a layer of everyone's -> a layer of the pack's -> one column, and a sum beside it."""
    nodes = [
        helper.make_node("Gather", ["table", "item.rows"], ["fields"], axis=0),
        helper.make_node("Gemm", ["fields", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "pack.w2", "pack.b2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("MatMul", ["r2", "w3"], ["deep"]),
        helper.make_node("Squeeze", ["deep", "one"], ["column"]),
        helper.make_node("Gather", ["items.sums", "item.rows"], ["sums"], axis=0),
        helper.make_node("ReduceSum", ["sums", "one"], ["wide"], keepdims=0),
        helper.make_node("Add", ["column", "wide"], ["logit"]),
    ]
    inputs = [
        helper.make_tensor_value_info("item.rows", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("items.sums", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("pack.w2", TensorProto.FLOAT, [16, 8]),
        helper.make_tensor_value_info("pack.b2", TensorProto.FLOAT, [8]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1]), "one"))
    graph = helper.make_graph(
        nodes, "one", inputs, [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["B"])], constants
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    )


def converted(folder, weights=WEIGHTS):
    made = batch(one(weights))
    made = batch(one(weights), float16.only_half(made))
    float16.convert(made, folder)
    onnx.checker.check_model(made, full_check=True)
    return made


def test_what_wide_products_alone_read_is_float16s(tmp_path):
    made = converted(tmp_path)
    types = {value.name: value.type.tensor_type.elem_type for value in made.graph.input}
    assert types["packs.float16.w2"] == TensorProto.FLOAT16
    assert types["packs.float32.b2"] == TensorProto.FLOAT  # b2 is added to what goes to the narrow product
    assert types["items.sums"] == TensorProto.FLOAT  # summed
    constants = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert (
        constants["w1.half.0"] == constants["b1.half.0"] == constants["table.half.0"] == TensorProto.FLOAT16
    )
    assert constants["w3"] == TensorProto.FLOAT  # one column: a sum
    assert "w1" not in constants
    (cast,) = [node for node in made.graph.node if node.op_type == "Cast"]
    assert helper.get_attribute_value(cast.attribute[0]) == TensorProto.FLOAT


def test_it_computes_what_numpy_does_with_rounded_numbers(tmp_path):
    session = onnxruntime.InferenceSession(converted(tmp_path).SerializeToString())
    rows = RNG.integers(0, 50, (3, 7)).astype(np.int32)
    packs = [
        (RNG.normal(size=8).astype(np.float32), RNG.normal(size=(16, 8)).astype(np.float32)) for _ in range(2)
    ]
    sums = RNG.normal(size=(50, 3)).astype(np.float32)
    slot = np.array([1, 0, 1], np.int32)
    feed = {"slot": slot, "item.rows": rows, "items.sums": sums}
    feed["packs.float16.w2"] = np.stack([w2.ravel() for _, w2 in packs]).astype(np.float16)
    feed["packs.float32.b2"] = np.stack([b2 for b2, _ in packs])
    found = session.run(None, feed)[0]

    def half(x):
        return np.asarray(x).astype(np.float16).astype(np.float64)

    for at in range(3):
        b2, w2 = packs[slot[at]]
        h1 = half(half(half(WEIGHTS["table"][rows[at]]) @ half(WEIGHTS["w1"])) + half(WEIGHTS["b1"]))
        h2 = half(half(np.maximum(h1, 0)) @ half(w2)) + b2
        deep = np.maximum(h2, 0) @ WEIGHTS["w3"].astype(np.float64)
        expected = deep[:, 0] + sums[rows[at]].astype(np.float64).sum(1)
        # Sums within a product may be of another order, and so round otherwise in their last place.
        np.testing.assert_allclose(found[at], expected, rtol=4e-3, atol=4e-3)


def test_a_weight_beyond_float16_is_refused(tmp_path):
    with pytest.raises(BundleError, match="w1 has numbers beyond"):
        converted(tmp_path, {**WEIGHTS, "w1": WEIGHTS["w1"] * 1e6})


def test_weights_are_read_from_the_file_beside(tmp_path):
    whole = one()
    onnx.save_model(
        whole, tmp_path / "one.onnx", save_as_external_data=True, location="data", size_threshold=48
    )
    bare = onnx.load(str(tmp_path / "one.onnx"), load_external_data=False)
    made = batch(bare)
    float16.convert(made, tmp_path)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    np.testing.assert_array_equal(
        numpy_helper.to_array(constants["w1.half.0"]), WEIGHTS["w1"].astype(np.float16)
    )
    assert constants["w3"].data_location == TensorProto.EXTERNAL


def test_layout_says_what_is_where(tmp_path):
    made = converted(tmp_path)
    assert made.metadata_props[0].key == LAYOUT
    assert json.loads(made.metadata_props[0].value) == {
        "rows": {},
        "values": {"packs.float16.w2": ["w2"], "packs.float32.b2": ["b2"]},
    }


LABEL = np.array([0, 1] * 100, np.float32)


def test_what_a_domain_loses_is_written_down():
    exact = RNG.normal(size=200) + LABEL
    moved = exact + 1e-4 * RNG.normal(size=200)
    found = precision.compared("books", "float16", exact, moved, LABEL)
    assert found.auc == metrics.auc(exact, LABEL)
    assert found.auc_loss == metrics.auc(exact, LABEL) - metrics.auc(moved, LABEL)
    assert found.max_abs_diff == pytest.approx(
        np.abs(1 / (1 + np.exp(-moved)) - 1 / (1 + np.exp(-exact))).max()
    )
    assert found.ece_change == pytest.approx(metrics.ece(moved, LABEL) - metrics.ece(exact, LABEL))


def test_a_domain_that_loses_more_than_it_may_is_refused():
    exact = np.linspace(-1, 1, 200)
    turned = exact.copy()
    turned[90:110] = turned[90:110][::-1]  # of 10,000 pairs, 10 more in order among these 20 rows, or fewer
    worse, better = sorted((exact, turned), key=lambda logit: metrics.auc(logit, LABEL))
    with pytest.raises(BundleError, match="books loses"):
        precision.compared("books", "float16", better, worse, LABEL)
    precision.compared("books", "float16", worse, better, LABEL)


def test_two_pairs_may_turn_where_there_are_few():
    label = np.array([0, 0, 1, 1], np.float32)
    exact, turned = np.array([0.0, 1, 2, 3]), np.array([0.0, 2, 1, 3])
    assert precision.compared("books", "float16", exact, turned, label).auc_loss == 0.25
    with pytest.raises(BundleError, match="loses"):
        precision.compared("books", "float16", exact, np.array([3.0, 2, 1, 0]), label)


def test_a_domain_without_clicks_has_no_auc():
    found = precision.compared("books", "float16", np.zeros(3), np.zeros(3), np.zeros(3, np.float32))
    assert (found.auc, found.auc_loss) == (None, 0.0)


def test_a_pack_beyond_float16_is_refused():
    from service.engines._stacks import Stack

    pack = DomainPack(
        "b", "books", {"w": np.full((2, 2), 1e6, np.float32)}, Golden({}, np.zeros(1, np.float32))
    )
    with pytest.raises(ValueError, match="beyond float16"):
        Stack("packs.float16", ("w",), 1, (4,), np.dtype(np.float16)).of(pack)

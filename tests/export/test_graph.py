from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export import graph
from export.packs import named
from export.parity import cases
from export.servable import ScopedModel, graph_inputs
from service.contract.field import Field
from service.contract.schema import FeatureSchema
from tests.conftest import Trained
from training.backbones import deepfm
from training.model import Model
from training.paradigms import plate


def exported(model: Model, folder: Path) -> Path:
    folder.mkdir()
    inputs = graph_inputs(model.schema, model)
    graph.write(ScopedModel(model.paradigm.servable(), inputs), inputs, folder / "graph.onnx")
    return folder


def test_equal_models_give_equal_bytes_and_no_path_of_this_machine(tiny: Trained, tmp_path: Path) -> None:
    one, two = (exported(tiny.model, tmp_path / name) for name in ("one", "two"))
    for name in ("graph.onnx", graph.WEIGHTS):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    text = (one / "graph.onnx").read_bytes()
    assert str(Path.cwd()).encode() not in text
    assert b".py" not in text


def test_names_scopes_and_opset_are_stable(tiny: Trained, tmp_path: Path) -> None:
    folder = exported(tiny.model, tmp_path / "one")
    proto = onnx.load(str(folder / "graph.onnx"), load_external_data=False)
    inputs = graph_inputs(tiny.model.schema, tiny.model)
    assert [value.name for value in proto.graph.input] == [spec.name for spec in inputs]
    assert [value.name for value in proto.graph.output] == ["logit"]
    assert proto.opset_import[0].version == graph.OPSET
    assert [(spec.name, spec.scope, spec.shape) for spec in inputs[:4]] == [
        ("request.ids", "request", (1, 6)),
        ("request.numbers", "request", (1, 1)),
        ("item.ids", "item", ("B", 6)),
        ("item.numbers", "item", ("B", 1)),
    ]
    assert {spec.name for spec in inputs[4:]} == {f"pack.{name}" for name in tiny.model.paradigm.owned}


def test_request_scope_work_is_not_repeated_for_every_candidate(tiny: Trained, tmp_path: Path) -> None:
    """Shape inference finds B only in what depends on the items, so never in the user prompt's layers."""
    folder = exported(tiny.model, tmp_path / "one")
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(folder / "graph.onnx")))
    prompt = [
        node.output[0] for node in proto.graph.node if any("user_prompt" in name for name in node.input)
    ]
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.value_info}
    assert prompt
    assert all(shapes[name][0].dim_value == 1 for name in prompt)


USER_ID = Field(name="id", owner="user", kind="vocabulary", values=("u", "v"))
AGE = Field(name="age", owner="user", kind="number")
ITEM_ID = Field(name="id", owner="item", kind="hashed", buckets=5)
TAGS = Field(name="tags", owner="item", kind="vocabulary", values=("s", "t"), multiple=3)
PRICE = Field(name="price", owner="item", kind="number")
MOOD = Field(name="mood", owner="user", kind="vector", size=2)
TEXT = Field(name="text", owner="item", kind="vector", size=5)


@pytest.mark.parametrize(
    "fields",
    [
        (USER_ID, ITEM_ID),
        (AGE, PRICE),
        (AGE, TAGS),
        (USER_ID, AGE, ITEM_ID, TAGS, PRICE),
        (MOOD, TEXT),
        (MOOD, AGE, TEXT, ITEM_ID, PRICE),
    ],
    ids=lambda fields: "-".join(field.key for field in fields),
)
def test_schemas_with_ids_alone_numbers_alone_lists_alone_vectors_alone(
    fields: tuple[Field, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    schema = FeatureSchema(fields=fields)
    backbone = partial(deepfm.build, deepfm.Options(hidden=(4,)), dim=3)
    model = Model(plate.build(plate.Options(), schema, backbone, 3, 2).eval(), schema, ("a", "b"))
    with torch.no_grad():
        for parameter in model.paradigm.parameters():
            parameter.normal_()
    folder = exported(model, tmp_path / "one")
    session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])
    inputs = graph_inputs(schema, model)
    assert [each.name for each in session.get_inputs()] == [spec.name for spec in inputs]
    pack = {f"pack.{name}": tensor.numpy() for name, tensor in model.pack("b").items()}
    for _, arrays in cases(schema):
        with torch.inference_mode():
            expected = torch.func.functional_call(model.paradigm.servable().eval(), model.pack("b"), arrays)
        (found,) = session.run(None, {**named(arrays, inputs), **pack})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)

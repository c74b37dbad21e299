"""A bundle small enough that every score is a sum one can do by hand.

logit = bias + sum of rows[id] over the request's and the item's ids
             + request numbers . user_numbers + item numbers . item_numbers

The whole model belongs to the domain, so two packs score as two models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export import many_graphs
from export.many_graphs import DTYPES
from service.contract import hashing
from service.contract.bundle import Bundle
from service.contract.field import Field
from service.contract.items import ItemTable
from service.contract.manifest import GraphInput, Manifest, ManyGraphs
from service.contract.pack import GENERAL, DomainPack, Golden
from service.contract.schema import FeatureSchema

DOMAINS = ("books", "films")
BUNDLE = "tiny-00000000"

SCHEMA = FeatureSchema(
    fields=(
        Field(name="id", owner="user", kind="vocabulary", dtype="int", values=(1, 2, 3)),
        Field(
            name="genres", owner="user", kind="vocabulary", multiple=3, values=("crime", "drama", "sci-fi")
        ),
        Field(name="age", owner="user", kind="number", mean=30.0, std=10.0),
        Field(name="hour", owner="context", kind="hashed", dtype="int", buckets=8),
        Field(name="id", owner="item", kind="vocabulary", dtype="int", values=(10, 11, 12, 13, 99)),
        Field(name="brand", owner="item", kind="vocabulary", values=("acme", "zeta")),
        Field(name="tags", owner="item", kind="vocabulary", multiple=2, values=("new", "old")),
        Field(name="price", owner="item", kind="number", mean=5.0, std=2.0),
    )
)
"""99 is an item id with an embedding, and without a row in the item table."""

ITEMS: Mapping[str, list[Any]] = {
    "item.id": [10, 11, 12, 13],
    "item.brand": ["acme", "zeta", None, "acme"],
    "item.tags": [["new"], ["new", "old"], [], None],
    "item.price": [5.0, 7.0, 3.0, None],
}

OWNED = {"bias": (1,), "rows": (SCHEMA.rows,), "user_numbers": (1,), "item_numbers": (1,)}


def logits(tensors: Mapping[str, Any], inputs: Mapping[str, Any]) -> np.ndarray:
    """The model in numpy: (B,) float64."""
    rows = np.append(tensors["rows"].astype(np.float64), 0.0)  # PAD is -1, which reads the appended 0
    logit: np.ndarray = (
        tensors["bias"][0]
        + rows[inputs["request.ids"]].sum()
        + (inputs["request.numbers"].astype(np.float64) @ tensors["user_numbers"]).sum()
        + rows[inputs["item.ids"]].sum(axis=1)
        + inputs["item.numbers"].astype(np.float64) @ tensors["item_numbers"]
    )
    return logit


def inputs_of(request: Mapping[str, Any], items: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    """Graph inputs from columns by `Field.key`."""
    asked, candidates = SCHEMA.encode("request", request, 1), SCHEMA.encode("item", items, n)
    return {
        "request.ids": asked.ids,
        "request.numbers": asked.numbers,
        "item.ids": candidates.ids,
        "item.numbers": candidates.numbers,
    }


def random_inputs(n: int, seed: int) -> dict[str, np.ndarray]:
    """A request with n candidates, lists padded."""
    rng = np.random.default_rng(seed)
    request_ids, request_numbers = SCHEMA.widths("request")
    item_ids, item_numbers = SCHEMA.widths("item")
    return {
        "request.ids": rng.integers(-1, SCHEMA.rows, (1, request_ids)).astype(np.int32),
        "request.numbers": rng.normal(size=(1, request_numbers)).astype(np.float32),
        "item.ids": rng.integers(-1, SCHEMA.rows, (n, item_ids)).astype(np.int32),
        "item.numbers": rng.normal(size=(n, item_numbers)).astype(np.float32),
    }


def make_pack(domain: str, seed: int = 0, *, calibration: tuple[float, float] = (1.0, 0.0)) -> DomainPack:
    """A pack of random weights whose golden logits numpy computed."""
    rng = np.random.default_rng([seed, *domain.encode()])
    tensors = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in OWNED.items()}
    golden = random_inputs(8, seed)
    logit = logits(tensors, golden).astype(np.float32)
    return DomainPack(BUNDLE, domain, tensors, Golden(golden, logit), np.array(calibration, np.float32))


def make_graph() -> onnx.ModelProto:
    """The model as ONNX."""
    inputs = [
        helper.make_tensor_value_info(
            spec.name, getattr(TensorProto, {"float32": "FLOAT", "int32": "INT32"}[spec.dtype]), spec.shape
        )
        for spec in graph_inputs()
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.INT32, [], [0]),
        helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
    ]
    nodes = []
    for scope, weights in (("request", "user_numbers"), ("item", "item_numbers")):
        nodes += [
            helper.make_node("Max", [f"{scope}.ids", "zero"], [f"{scope}.row"]),
            helper.make_node("Gather", ["pack.rows", f"{scope}.row"], [f"{scope}.read"]),
            helper.make_node("Less", [f"{scope}.ids", "zero"], [f"{scope}.pad"]),
            helper.make_node("Where", [f"{scope}.pad", "nothing", f"{scope}.read"], [f"{scope}.rows"]),
            helper.make_node("ReduceSum", [f"{scope}.rows", "last"], [f"{scope}.first"], keepdims=0),
            helper.make_node("MatMul", [f"{scope}.numbers", f"pack.{weights}"], [f"{scope}.second"]),
            helper.make_node("Add", [f"{scope}.first", f"{scope}.second"], [f"{scope}.sum"]),
        ]
    nodes += [
        helper.make_node("Add", ["request.sum", "item.sum"], ["sum"]),
        helper.make_node("Add", ["sum", "pack.bias"], ["logit"]),
    ]
    output = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["B"])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def graph_inputs() -> tuple[GraphInput, ...]:
    """The graph's inputs, as the manifest lists them."""
    asked, items = SCHEMA.widths("request"), SCHEMA.widths("item")
    spec = GraphInput
    return (
        spec(name="request.ids", dtype="int32", shape=(1, asked[0]), scope="request", source="schema"),
        spec(name="request.numbers", dtype="float32", shape=(1, asked[1]), scope="request", source="schema"),
        spec(name="item.ids", dtype="int32", shape=("B", items[0]), scope="item", source="schema"),
        spec(name="item.numbers", dtype="float32", shape=("B", items[1]), scope="item", source="schema"),
        *(
            spec(name=f"pack.{name}", dtype="float32", shape=shape, scope="pack", source="pack")
            for name, shape in OWNED.items()
        ),
    )


def make_rows_graph() -> onnx.ModelProto:
    """The model over tables of the items' fields, which it looks up by row."""
    proto = make_graph()
    kept = [value for value in proto.graph.input if not value.name.startswith("item.")]
    types = {"ids": TensorProto.INT32, "numbers": TensorProto.FLOAT}
    widths = dict(zip(types, SCHEMA.widths("item"), strict=True))
    tables = [
        helper.make_tensor_value_info(f"items.{name}", types[name], ["N", widths[name]]) for name in types
    ]
    rows = helper.make_tensor_value_info("item.rows", TensorProto.INT32, ["B"])
    nodes = [helper.make_node("Gather", [f"items.{name}", "item.rows"], [f"item.{name}"]) for name in types]
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = ["weights" if name == "item.rows" else name for name in names]
    nodes += proto.graph.node
    for field, values in (("input", [*kept, rows, *tables]), ("node", nodes)):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(values)
    return proto


def with_many(bundle: Bundle) -> Bundle:
    """The bundle with graphs of many requests, in float32 and float16, as export makes them."""
    made = {}
    halves = bundle.manifest.item_halves
    for dtype in DTYPES:
        files = {}
        for form, graph in (
            ("fields", bundle.graph),
            ("rows", bundle.path / halves.graph if halves else None),
        ):
            if graph is not None:
                files[form] = many_graphs.write_one(
                    onnx.load(str(graph)), bundle.path, f"many.{form}.{dtype}.onnx", dtype
                )
        made[dtype] = ManyGraphs(**files)
    written = {file.name: hashing.file(file) for file in bundle.path.glob("*.onnx")}
    listed = {**written, **bundle.manifest.files}
    manifest = bundle.manifest.model_copy(update={"many": made, "files": listed})
    return Bundle(bundle.path, manifest, bundle.schema, bundle.items)


def make_bundle(path: Path) -> Bundle:
    """Write the bundle and open it."""
    (path / "packs").mkdir(parents=True)
    onnx.save(make_graph(), path / "graph.onnx")
    SCHEMA.save(path / "schema.json")
    ItemTable.encode(SCHEMA, ITEMS).save(path / "items")
    for domain in (GENERAL, *DOMAINS):
        (path / "packs" / f"{domain}.safetensors").write_bytes(make_pack(domain).to_bytes())
    there = sorted(file for file in path.rglob("*") if file.is_file())
    Manifest(
        name="tiny",
        bundle=BUNDLE,
        model={},
        schema_fingerprint=SCHEMA.fingerprint,
        domains=DOMAINS,
        inputs=graph_inputs(),
        graph="graph.onnx",
        parity=(),
        parameters=sum(int(np.prod(shape)) for shape in OWNED.values()),
        parameters_of_domain=sum(int(np.prod(shape)) for shape in OWNED.values()),
        parameters_tuned=sum(int(np.prod(shape)) for shape in OWNED.values()),
        files={str(file.relative_to(path)): hashing.file(file) for file in there},
    ).save(path / "manifest.json")
    return Bundle.open(path)

"""`/v2` against the protocol's text, its own examples, Triton's client, and `/v1`."""

import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.server import service as served
from service.api import inference
from service.api.tensors import Malformed
from service.contract.errors import InvalidRequest, Place
from service.contract.pack import version
from service.contract.schema import FeatureSchema
from tests.service import bundles
from tests.service.conftest import JSON, Publisher, running
from tests.service.waiting import eventually

MODEL = "/v2/models/tiny"
INFER = f"{MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"
BOOKS = {"domain": "books"}
DTYPES = {"INT64": "<i8", "INT32": "<i4", "UINT8": "u1", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4"}
FULL: dict[str, Any] = {
    "user": {"id": 2, "genres": ["drama", "crime"], "age": 45},
    "context": {"hour": 20},
    "ids": [10, 11, 99, 12345],
    "items": {
        "price": [5, 1.5, 2, 7],
        "brand": ["acme", "zeta", "acme", "new"],
        "tags": [["old"], ["new", "old"], ["new", "old"], []],
    },
}
"""What `triton_client.INPUTS` says, for `/v1`."""


def tensor(name, datatype, data, shape=None):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


IDS = tensor("ids", "INT64", [10, 11])


def ask(service, *inputs, parameters=BOOKS, path=INFER, headers=None, **others):
    """POST a request in JSON; the whole response."""
    body = {"inputs": inputs or [IDS], "parameters": parameters, **others}
    return service.client.post(path, json=body, headers=headers)


def packed(*inputs, parameters=BOOKS, **others):
    """A request whose inputs are bytes: body and headers."""
    specs, chunks = [], []
    for each in inputs:
        if each["datatype"] == "BYTES":
            texts = [text.encode() for text in each["data"]]
            chunk = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            chunk = np.array(each["data"], DTYPES[each["datatype"]]).tobytes()
        chunks.append(chunk)
        rest = {key: value for key, value in each.items() if key != "data"}
        specs.append({**rest, "parameters": {"binary_data_size": len(chunk)}})
    header = json.dumps({"inputs": specs, "parameters": parameters, **others}).encode()
    return b"".join([header, *chunks]), {LENGTH: str(len(header))}


def outputs(answer):
    """The outputs of an answer by name, as lists, wherever they stand in it."""
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(LENGTH)
    body = json.loads(answer.content[: int(length)] if length else answer.content)
    assert answer.headers["content-type"] == ("application/octet-stream" if length else "application/json")
    at, found = int(length or len(answer.content)), {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[output["name"]] = output["data"]
        else:
            found[output["name"]] = np.frombuffer(
                answer.content, DTYPES[output["datatype"]], output["shape"][0], at
            ).tolist()
            at += size
        assert len(found[output["name"]]) == output["shape"][0]
    assert at == len(answer.content)
    return found


def error(answer, status):
    """The one line of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert body["error"]
    assert "\n" not in body["error"]
    return body["error"]


def single(probabilities):
    """As FP32."""
    return np.array(probabilities, np.float32).tolist()


def test_server_metadata_and_health(shared):
    body = shared.client.get("/v2").json()
    assert set(body) == {"name", "version", "extensions"}
    assert body["name"] == "mdctr"
    assert "binary_tensor_data" in body["extensions"]
    assert shared.client.get("/v2/").json() == body
    assert shared.client.get("/v2/health/live").json() == {"live": True}
    assert shared.client.get("/v2/health/ready").json() == {"ready": True}
    for path in (f"{MODEL}/ready", f"{MODEL}/versions/00000000/ready"):
        assert shared.client.get(path).json() == {"name": "tiny", "ready": True}


def test_health_says_no_where_readyz_does(bundle, tmp_path):
    with running(bundle, f"directory:{tmp_path / 'empty'}") as service:
        for path, body in (
            ("/v2/health/ready", {"ready": False}),
            (f"{MODEL}/ready", {"name": "tiny", "ready": False}),
        ):
            answer = service.client.get(path)
            assert (answer.status_code, answer.json()) == (503, body)
        assert service.client.get("/v2/health/live").status_code == 200
        answer = ask(service)
        assert "books is not loaded yet" in error(answer, 503)


def test_draining_is_not_ready(service):
    service.client.app.state.draining = True
    assert service.client.get("/v2/health/ready").status_code == 503
    assert service.client.get("/v2/health/live").status_code == 200
    assert ask(service).headers["connection"] == "close"


def test_model_metadata(shared):
    body = shared.client.get(MODEL).json()
    assert body == {
        "name": "tiny",
        "versions": ["00000000"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [-1]},
            {"name": "user.id", "datatype": "INT64", "shape": [1]},
            {"name": "user.genres", "datatype": "BYTES", "shape": [1, -1]},
            {"name": "user.age", "datatype": "FP32", "shape": [1]},
            {"name": "context.hour", "datatype": "INT64", "shape": [1]},
            {"name": "item.brand", "datatype": "BYTES", "shape": [-1]},
            {"name": "item.tags", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "item.price", "datatype": "FP32", "shape": [-1]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1]},
            {"name": "ids", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert shared.client.get(f"{MODEL}/versions/00000000").json() == body


@pytest.mark.parametrize("rest", ["", "/ready", "/infer"])
def test_other_models_and_versions_are_404(shared, rest):
    for path, line in (
        ("/v2/models/nobody", "no such model; tiny is served"),
        (f"{MODEL}/versions/1", "no such version of tiny; 00000000 is served"),
    ):
        url = f"{path}{rest}"
        answer = shared.client.post(url, json={}) if rest == "/infer" else shared.client.get(url)
        assert error(answer, 404) == line


def test_other_paths_and_methods_have_the_protocols_errors(shared):
    error(shared.client.get("/v2/repository/index"), 404)
    error(shared.client.get(INFER), 405)
    error(shared.client.post("/v2"), 405)
    assert "error" not in shared.client.get("/v2x").json()  # a problem


def test_an_answer_has_what_the_protocol_says(shared):
    answer = ask(shared, IDS, id="42", headers={"X-Request-ID": "kept"})
    assert answer.headers["x-request-id"] == "kept"
    assert [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")] == [
        "queue",
        "features",
        "engine",
        "total",
    ]
    body = answer.json()
    assert body == {
        "model_name": "tiny",
        "model_version": "00000000",
        "id": "42",
        "parameters": {
            "domain": "books",
            "bundle": "tiny-00000000",
            "pack": version(bundles.make_pack("books").to_bytes()),
        },
        "outputs": [
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [2],
                "data": single(shared.rank(ids=[10, 11]).json()["probabilities"]),
            }
        ],
    }
    assert "id" not in ask(shared).json()


def test_the_protocols_own_example_is_taken_apart(bundle):
    """The extension's: two binary inputs, one binary output, and `model_name` in the body."""
    header = json.dumps(
        {
            "model_name": "tiny",
            "parameters": BOOKS,
            "inputs": [
                {
                    "name": "ids",
                    "shape": [4],
                    "datatype": "UINT32",
                    "parameters": {"binary_data_size": 16},
                },
                {
                    "name": "item.price",
                    "shape": [4],
                    "datatype": "BOOL",
                    "parameters": {"binary_data_size": 4},
                },
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    asked = inference.read(header + struct.pack("<4I", 1, 2, 3, 4) + b"\1\0\1\1", str(len(header)), bundle)
    assert isinstance(asked.ids, np.ndarray)
    assert asked.ids.tolist() == [1, 2, 3, 4]
    assert asked.ids.dtype == np.int64
    assert asked.items == {"price": [1, 0, 1, 1]}
    assert asked.outputs == (("probabilities", True),)
    with pytest.raises(InvalidRequest, match="model_name"):
        inference.read(header.replace(b'"tiny"', b'"deep"'), None, bundle)


WHOLE = [
    tensor("user.id", "INT64", [2]),
    tensor("user.genres", "BYTES", ["drama", "crime"]),
    tensor("user.age", "FP32", [45]),
    tensor("context.hour", "UINT8", [20]),
    tensor("ids", "INT64", [10, 11, 99, 12345]),
    tensor("item.price", "FP32", [5, 1.5, 2, 7]),
    tensor("item.brand", "BYTES", ["acme", "zeta", "acme", "new"]),
    tensor("item.tags", "BYTES", ["old", "", "new", "old", "new", "old", "", ""], [4, 2]),
]


@pytest.mark.parametrize("inputs", [WHOLE, WHOLE[::-1]], ids=["in order", "backwards"])
def test_json_bytes_and_v1_have_the_same_scores(shared, inputs):
    probabilities = single(shared.rank(**FULL).json()["probabilities"])
    assert outputs(ask(shared, *inputs)) == {"probabilities": probabilities}
    for options in ({}, {"binary_data_output": True}):
        body, headers = packed(*inputs, parameters={**BOOKS, **options})
        answer = shared.client.post(INFER, content=body, headers=headers)
        assert outputs(answer) == {"probabilities": probabilities}
        assert (LENGTH in answer.headers) is bool(options)


def test_json_and_bytes_may_be_mixed(shared):
    body, headers = packed(*WHOLE[4:])
    length = int(headers[LENGTH])
    header = json.loads(body[:length])
    header["inputs"] = [*WHOLE[:2], *header["inputs"][:2], *WHOLE[2:4], *header["inputs"][2:]]
    start = json.dumps(header).encode()
    answer = shared.client.post(INFER, content=start + body[length:], headers={LENGTH: str(len(start))})
    assert outputs(answer)["probabilities"] == single(shared.rank(**FULL).json()["probabilities"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([10, 11, 12, 13, 99, 5, -1]), min_size=1, max_size=9),
    st.integers(-5, 90),
    st.data(),
)
def test_any_request_scores_as_v1_does(shared, ids, age, data):
    n = len(ids)
    prices = data.draw(st.lists(st.floats(-100, 100, width=16), min_size=n, max_size=n))
    tags = data.draw(
        st.lists(st.lists(st.sampled_from(["new", "old", "x"]), max_size=3), min_size=n, max_size=n)
    )
    width = max(map(len, tags))
    texts = [tag for row in tags for tag in [*row, *[""] * (width - len(row))]]
    inputs = [
        tensor("ids", "INT32" if data.draw(st.booleans()) else "INT64", ids),
        tensor("user.age", "FP16", [age]),
        tensor("item.price", "FP16", prices),
        tensor("item.tags", "BYTES", texts, [n, width]),
    ]
    top_k = data.draw(st.none() | st.integers(1, 10))
    parameters = {**BOOKS, "binary_data_output": True, **({"top_k": top_k} if top_k else {})}
    body, headers = packed(*inputs, parameters=parameters)
    found = outputs(shared.client.post(INFER, content=body, headers=headers))
    answer = shared.rank(
        user={"age": age}, ids=ids, items={"price": prices, "tags": tags}, top_k=top_k
    ).json()
    assert found["probabilities"] == single(answer["probabilities"])
    assert found.get("ids", answer["ids"]) == answer["ids"]
    assert ("ids" in found) is (top_k is not None)


@pytest.mark.parametrize("shape", [[2], [1, 2]])
def test_a_request_fields_list_may_have_either_shape(shared, shape):
    answer = ask(shared, IDS, tensor("user.genres", "BYTES", ["drama", "crime"], shape))
    expected = shared.rank(ids=[10, 11], user={"genres": ["drama", "crime"]}).json()
    assert outputs(answer)["probabilities"] == single(expected["probabilities"])


@pytest.mark.parametrize("nested", [[["old", ""], ["new", "old"]], ["old", "", "new", "old"]])
def test_data_may_be_nested(shared, nested):
    answer = ask(shared, IDS, tensor("item.tags", "BYTES", nested, [2, 2]))
    expected = shared.rank(ids=[10, 11], items={"tags": [["old"], ["new", "old"]]}).json()
    assert outputs(answer)["probabilities"] == single(expected["probabilities"])


def test_lists_of_integers_are_padded_with_the_least_of_a_signed_type(bundle):
    fields = tuple(
        field.model_copy(update={"dtype": "int", "values": (7, 8, 9)})
        if field.key == "user.genres"
        else field
        for field in bundle.schema.fields
    )

    class Other:
        manifest, items, schema = bundle.manifest, bundle.items, FeatureSchema(fields=fields)

    least = -(2**63)
    for datatype, data, kept in (
        ("INT64", [7, least, 8], [7, 8]),
        ("INT8", [-128, 7], [7]),
        ("INT32", [-1, 0], [-1, 0]),
        ("UINT8", [0, 255], [0, 255]),
        ("UINT64", [2**64 - 1], [2**64 - 1]),
        ("INT64", [], []),
    ):
        body = {"inputs": [IDS, tensor("user.genres", datatype, data, [len(data)])], "parameters": BOOKS}
        asked = inference.read(json.dumps(body).encode(), None, Other)  # type: ignore[arg-type]
        assert asked.user == {"genres": kept}


def test_outputs_are_those_asked_for_in_their_order(shared):
    everything = shared.rank(ids=[10, 11]).json()
    probabilities = single(everything["probabilities"])
    for names in (["ids"], ["ids", "probabilities"], ["probabilities", "ids"], ["probabilities"]):
        found = outputs(ask(shared, outputs=[{"name": name} for name in names]))
        assert list(found) == names
        assert found == {name: {"ids": [10, 11], "probabilities": probabilities}[name] for name in names}
    # An output's own parameter overrides the request's.
    answer = ask(
        shared,
        parameters={**BOOKS, "binary_data_output": True},
        outputs=[{"name": "probabilities", "parameters": {"binary_data": False}}, {"name": "ids"}],
    )
    assert outputs(answer) == {"probabilities": probabilities, "ids": [10, 11]}
    header = json.loads(answer.content[: int(answer.headers[LENGTH])])
    assert header["outputs"][1] == {
        "name": "ids",
        "datatype": "INT64",
        "shape": [2],
        "parameters": {"binary_data_size": 16},
    }


def test_top_k_answers_the_ids_too(shared):
    ids = [10, 11, 12, 13]
    answer = shared.rank(ids=ids, top_k=2).json()
    found = outputs(ask(shared, tensor("ids", "INT64", ids), parameters={**BOOKS, "top_k": 2}))
    assert found == {"probabilities": single(answer["probabilities"]), "ids": answer["ids"]}
    only = ask(shared, parameters={**BOOKS, "top_k": 1}, outputs=[{"name": "probabilities"}])
    assert list(outputs(only)) == ["probabilities"]


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ([tensor("user.age", "FP32", [1.0])], "ids: is missing"),
        ([{**IDS, "shape": [0], "data": []}], "ids: there are none"),
        ([{**IDS, "shape": [1, 2]}], "ids: expected the shape [n], got [1, 2]"),
        ([tensor("ids", "BYTES", ["10"])], "ids: expected a type of integers, got BYTES"),
        ([tensor("ids", "FP64", [10])], "ids: expected a type of integers, got FP64"),
        ([tensor("ids", "UINT64", [2**63])], "ids: an id does not fit INT64"),
        ([{**IDS, "shape": [3]}], "ids: the shape [3] has 3 elements, and the data 2"),
        ([{**IDS, "shape": [2**62, 4]}], f"ids: the shape [{2**62}, 4] has {2**64} elements, and the data 2"),
        ([{**IDS, "datatype": "INT4"}], "ids: the datatype must be one of BOOL, "),
        ([{**IDS, "parameters": {"binary_data_size": 16}}], "ids: either `data` or `binary_data_size`"),
        ([{**IDS, "data": None}], "ids: either `data` or `binary_data_size` must be given"),
        ([IDS, IDS], "ids: is given twice"),
        ([IDS, tensor("user.height", "FP32", [1])], "user.height: no such input"),
        ([IDS, tensor("age", "FP32", [1])], "age: no such input"),
        ([IDS, tensor("", "FP32", [1])], "no such input"),
        ([IDS, tensor("y" * 300, "FP32", [1])], f"{'y' * 200}...: no such input"),
        (
            [IDS, tensor("item.id", "INT64", [10, 11])],
            "item.id: the candidates' ids are given once, in `ids`",
        ),
        ([IDS, tensor("user.age", "BYTES", ["1"])], "user.age: expected a type of numbers, got BYTES"),
        ([IDS, tensor("user.age", "FP32", [1, 2])], "user.age: expected the shape [1], got [2]"),
        ([IDS, tensor("user.age", "FP32", [1], [1, 1])], "user.age: expected the shape [1], got [1, 1]"),
        ([IDS, tensor("user.age", "FP64", [1e31])], "user.age: expected a finite number of at most 1e30"),
        ([IDS, tensor("user.age", "FP32", ["x"])], "user.age: element 0 is str, not FP32"),
        ([IDS, tensor("user.id", "FP32", [1])], "user.id: expected a type of integers, got FP32"),
        ([IDS, tensor("user.id", "INT64", [])], "user.id: expected the shape [1], got [0]"),
        ([IDS, tensor("context.hour", "FP32", [3])], "context.hour: expected a type of integers, got FP32"),
        ([IDS, tensor("user.genres", "INT64", [3])], "user.genres: expected BYTES, got INT64"),
        (
            [IDS, tensor("user.genres", "BYTES", ["a", "b"], [2, 1])],
            "user.genres: expected the shape [k] or [1, k], got [2, 1]",
        ),
        ([IDS, tensor("item.price", "FP32", [1])], "item.price: 1 values for 2 candidates"),
        (
            [IDS, tensor("item.price", "FP32", [1, 2], [2, 1])],
            "item.price: expected the shape [n], got [2, 1]",
        ),
        ([IDS, tensor("item.price", "FP64", [1, 1e31])], "item.price[1]: expected a finite number"),
        ([IDS, tensor("item.tags", "BYTES", ["a", "b"])], "item.tags: expected the shape [n, k], got [2]"),
        ([IDS, tensor("item.tags", "BYTES", ["a", "b"], [1, 2])], "item.tags: 1 values for 2 candidates"),
        (
            [IDS, {**tensor("item.tags", "BYTES", []), "shape": [2**62, 0]}],
            f"item.tags: {2**62} values for 2",
        ),
        ([{**IDS, "shape": [-2]}], "Expected `int` >= 0 - at `$.inputs[0].shape[0]`"),
        ([{**IDS, "shape": [2.0]}], "Expected `int`, got `float` - at `$.inputs[0].shape[0]`"),
        ([{**IDS, "shape": [2**63]}], "at `$.inputs[0].shape[0]`"),
        ([{**IDS, "shape": [2, 1, 1]}], "at `$.inputs[0].shape`"),
        ([{**IDS, "shape": []}], "at `$.inputs[0].shape`"),
        ([{**IDS, "data": "10"}], "at `$.inputs[0].data`"),
        ([{**IDS, "surprise": 1}], "unknown field `surprise` - at `$.inputs[0]`"),
        ([{**IDS, "parameters": {"shared_memory_region": "x"}}], "unknown field `shared_memory_region`"),
        (["ids"], "at `$.inputs[0]`"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_inputs_that_the_model_does_not_take_are_422(shared, inputs, line):
    assert line in error(ask(shared, *inputs), 422)


@pytest.mark.parametrize(
    ("others", "line"),
    [
        ({"parameters": {}}, "missing required field `domain`"),
        ({"parameters": None}, "at `$.parameters`"),
        ({"parameters": {"domain": 3}}, "at `$.parameters.domain`"),
        ({"parameters": {**BOOKS, "top_k": 0}}, "at `$.parameters.top_k`"),
        ({"parameters": {**BOOKS, "top_k": "1"}}, "at `$.parameters.top_k`"),
        ({"parameters": {**BOOKS, "timeout": 1000}}, "unknown field `timeout`"),
        ({"parameters": {**BOOKS, "unit": ""}}, "at `$.parameters.unit`"),
        ({"parameters": {**BOOKS, "priority": 1}}, "unknown field `priority`"),
        ({"parameters": {**BOOKS, "x" * 1000: 1}}, "unknown field"),
        ({"parameters": {**BOOKS, "binary_data_output": 1}}, "at `$.parameters.binary_data_output`"),
        ({"id": 42}, "at `$.id`"),
        ({"outputs": [{"name": "scores"}]}, "scores: no such output"),
        ({"outputs": [{"name": "ids"}, {"name": "ids"}]}, "ids: is asked for twice"),
        ({"outputs": [{"name": "ids", "parameters": {"classification": 2}}]}, "field `classification`"),
        ({"outputs": [{}]}, "at `$.outputs[0]`"),
        ({"model_name": "deep"}, "model_name: it is not the path's"),
        ({"surprise": 1}, "unknown field `surprise`"),
    ],
    ids=str,
)
def test_other_parts_that_the_protocol_does_not_have_are_422(shared, others, line):
    found = error(ask(shared, **others), 422)
    assert line in found
    assert len(found) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"inputs":[}',
        b'{"inputs":[{"name":"\\ud800"}]}',
        b'{"inputs":[{"name":"ids","datatype":"FP32","shape":[1],"data":[NaN]}]}',
        b'{"id":"' + b"\xff" + b'","inputs":[]}',
        b'{"parameters":{"domain":"books"},"inputs":[{"name":"ids","datatype":"INT64","shape":[1],"data":'
        + b"[" * 5000
        + b"]" * 5000
        + b"}]}",
    ],
)
def test_what_is_not_json_is_400(shared, body):
    error(shared.client.post(INFER, content=body, headers=JSON), 400)


@pytest.mark.parametrize("length", ["", "x", "-1", "1.5", "1e3", " ", "9" * 30, "٣", "+1"])
def test_a_header_length_that_is_no_length_is_400(shared, length):
    answer = shared.client.post(INFER, content=b"{}", headers=[(LENGTH, length.encode())])
    assert "is not a number of bytes" in error(answer, 400)


def test_bytes_that_do_not_add_up_are_400(shared):
    body, headers = packed(tensor("ids", "INT64", [200, 10]))
    length = int(headers[LENGTH])

    def refused(content, given):
        return error(shared.client.post(INFER, content=content, headers={LENGTH: str(given)}), 400)

    assert f"is {len(body) + 1}, and the body has {len(body)} bytes" in refused(body, len(body) + 1)
    assert "ids: 16 bytes are announced, and 15 are left" in refused(body[:-1], length)
    assert "2 bytes follow the last tensor's" in refused(body + b"xx", length)
    assert "does not begin with JSON" in refused(body, length - 1)
    assert "does not begin with JSON" in refused(body, length + 1)
    assert "does not begin with JSON" in refused(body, 0)
    # Bytes announced, and no header that says where they begin.
    error(shared.client.post(INFER, content=body), 400)
    answer = error(shared.client.post(INFER, content=body[:length]), 400)
    assert "whose length Inference-Header-Content-Length says" in answer


def test_sizes_that_are_not_the_shapes_are_422(shared):
    body, headers = packed({**IDS, "shape": [3]})
    answer = shared.client.post(INFER, content=body, headers=headers)
    assert error(answer, 422) == "ids: INT64 of shape [3] takes 24 bytes, and 16 are announced"
    body, headers = packed(IDS, tensor("item.price", "FP32", [1, float("nan")]))
    answer = shared.client.post(INFER, content=body, headers=headers)
    assert error(answer, 422) == "item.price: element 1 is not a finite number"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_a_request_is_more_than_a_refusal(bundle, data):
    body, headers = packed(*WHOLE)
    length = data.draw(st.just(headers[LENGTH]) | st.integers(0, len(body) + 9).map(str) | st.none())
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(body)) | st.integers(0, len(body)))
    with suppress(Malformed, InvalidRequest):
        inference.read(bytes(damaged[:cut]), length, bundle)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_compressed_bodies_are_415(shared, encoding):
    answer = shared.client.post(INFER, content=b"x", headers={"Content-Encoding": encoding})
    assert "must not be compressed" in error(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("media", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("application/octet-stream", 200),
        ("application/json; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
def test_media_types(shared, media, status):
    content = json.dumps({"inputs": [IDS], "parameters": BOOKS})
    answer = shared.client.post(INFER, content=content, headers={"content-type": media} if media else {})
    assert answer.status_code == status
    if status != 200:
        error(answer, status)


def test_bounds_of_body_and_candidates(start):
    service = start(max_body_bytes=300, max_candidates=3)
    assert ask(service, tensor("ids", "INT64", [10] * 3)).status_code == 200
    assert error(ask(service, tensor("ids", "INT64", [10] * 4)), 422) == "ids: 4 candidates; at most 3"
    assert "300 bytes" in error(ask(service, tensor("ids", "INT64", [10] * 300)), 413)


def test_domains_and_deadlines(shared):
    assert error(ask(shared, parameters={"domain": "cooking"}), 404) == "unknown domain 'cooking'"
    for deadline in ("0", "x", "-1", "inf"):
        assert "X-Deadline-Ms" in error(ask(shared, headers={"X-Deadline-Ms": deadline}), 400)


def test_numbers_that_overflow_the_network_are_one_line(shared, monkeypatch):
    def rank(*args, **kwargs):
        raise InvalidRequest([Place("", "too large"), Place("/ids/3", "x")])

    monkeypatch.setattr("service.scoring.Scorer.rank", rank)
    assert error(ask(shared), 422) == "too large, and 1 more"


def test_a_fault_of_ours_tells_nothing(service, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("insides")

    monkeypatch.setattr("service.scoring.Scorer.rank", broken)
    answer = ask(service)
    assert "insides" not in error(answer, 500)
    assert service.metric("mdctr_requests_total", domain="books", status="500") == 1


def test_requests_are_counted_as_v1s(service):
    ask(service)
    ask(service, tensor("user.age", "FP32", [1]))
    ask(service, tensor("ids", "INT64", [10, 5]), parameters={"domain": "films"})
    assert service.metric("mdctr_requests_total", domain="books", status="200") == 1
    assert service.metric("mdctr_requests_total", domain="films", status="200") == 1
    assert service.metric("mdctr_requests_total", domain="other", status="422") == 1
    assert service.metric("mdctr_unknown_values_total", field="item.id") == 1
    assert service.metric("mdctr_candidates_sum") == 4


def test_infer_is_guarded_and_the_rest_is_open(bundle, tmp_path):
    publisher = Publisher(f"directory:{tmp_path / 'store'}")
    publisher.raw(dict(bundle.packs()))
    key = "shop-0123456789abcdef"
    with running(bundle, publisher.url, rank_keys={"shop": key}) as service:
        eventually(service.ready)
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready"):
            assert service.client.get(path).status_code == 200
        for path in (INFER, f"{MODEL}/versions/00000000/infer", "/v2/models/nobody/infer"):
            answer = service.client.post(path, content=b"{")
            assert "key" in error(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert ask(service, headers=headers).status_code == 200


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The same bundle, but for ids that are strings."""
    fields = tuple(
        field.model_copy(update={"dtype": "str", "values": tuple(map(str, field.values))})
        if field.key == "item.id"
        else field
        for field in bundles.SCHEMA.fields
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "SCHEMA", FeatureSchema(fields=fields))
        patch.setattr(bundles, "ITEMS", {**bundles.ITEMS, "item.id": ["10", "11", "12", "13"]})
        return bundles.make_bundle(tmp_path_factory.mktemp("texts") / "tiny")


@pytest.mark.parametrize("ids", ["INT64", "BYTES"])
def test_tritons_client(ids, bundle, texts, shared, tmp_path):
    of = {"INT64": bundle, "BYTES": texts}[ids]
    publish = Publisher(f"directory:{tmp_path / 'store'}")
    publish.raw(dict(of.packs()))
    with served(of.path, publish.url, tmp_path / "log", {"MDCTR_DRAIN_SECONDS": "0"}) as url:
        script = Path(__file__).with_name("triton_client.py")
        command = [sys.executable, str(script), url.removeprefix("http://"), "tiny", "00000000"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [found[name] for name in ("live", "ready", "model_ready", "version_ready")] == [True] * 4
    assert found["no_model_ready"] is False
    assert found["server"]["name"] == "mdctr"
    assert found["model"] == found["version"]
    assert found["model"]["inputs"][0] == {"name": "ids", "datatype": ids, "shape": [-1]}

    asked = {**FULL, "ids": [*map(str, FULL["ids"])]} if ids == "BYTES" else FULL
    probabilities = single(shared.rank(**FULL).json()["probabilities"])
    best = shared.rank(**FULL, top_k=2).json()
    best_ids = [*map(str, best["ids"])] if ids == "BYTES" else best["ids"]
    for binary in ("True", "False"):
        answers = found["answers"][binary]
        assert answers["whole"] == probabilities
        assert answers["type"] == "float32"
        assert answers["response"]["id"] == "42"
        assert answers["response"]["parameters"]["domain"] == "books"
        assert answers["both"] == [asked["ids"], probabilities]
        assert answers["order"] == ["ids", "probabilities"]
        assert answers["best"] == [best_ids, single(best["probabilities"])]
        assert answers["alone"] == single(shared.rank(ids=[10]).json()["probabilities"])
    assert found["async"] == [probabilities] * 4
    assert found["uncompressed"] == probabilities
    assert found["refused"] == {
        "domain": ["404", "unknown domain 'cooking'"],
        "input": ["422", "user.height: no such input"],
        "compressed": ["415", "the body must not be compressed"],
        "priority": ["422", "Object contains unknown field `priority` - at `$.parameters`"],
        "timeout": ["422", "Object contains unknown field `timeout` - at `$.parameters`"],
    }

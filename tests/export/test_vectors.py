"""A model that reads vectors, from rows to answers over HTTP. Expected scores are torch's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import build
from export.packs import tensors
from export.publish import publish
from loadtest import wire
from loadtest.traffic import Mix, Traffic
from service.contract.bundle import Bundle
from service.stores._open import open_store
from tests.conftest import Trained, train
from tests.leanings import DISLIKED, ITEMS, LIKED
from tests.service.conftest import JSON, Service, running
from tests.service.waiting import eventually
from training import checkpoint

STRANGE = 10_000
"""An item id that nothing knows."""
USER = {"mood": [1.0, 0.0]}
"""Who likes `LIKED`."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    return train(tmp_path_factory.mktemp("run") / "leanings", data_root, data={"name": "tests.leanings"})


@pytest.fixture(scope="module", params=[True, False], ids=["item halves", "no item halves"])
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Bundle:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    out = tmp_path_factory.mktemp("bundles")
    return build(trained.recipe, trained.prepared, trained.model, metrics, out, item_halves=request.param)


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    url = f"directory:{tmp_path_factory.mktemp('store')}"

    async def put() -> None:
        store = open_store(url, bundle.manifest.bundle)
        await publish(bundle, store)
        await store.close()

    asyncio.run(put())
    with running(bundle, url) as service:
        eventually(service.ready)
        yield service


def expected(trained: Trained, user: Mapping[str, Any], items: Mapping[str, Any], n: int) -> list[float]:
    """Torch's, in domain `a`."""
    model, schema = trained.model, trained.model.schema
    request = schema.encode("request", {f"user.{name}": [value] for name, value in user.items()}, 1)
    item = schema.encode("item", {f"item.{name}": column for name, column in items.items()}, n)
    servable = model.paradigm.servable().eval()
    with torch.inference_mode():
        logit = torch.func.functional_call(servable, model.pack("a"), tensors(request, item))
    a, b = model.calibration["a"]
    found: list[float] = (a * logit + b).sigmoid().tolist()
    return found


def ask(service: Service, user: Mapping[str, Any] = USER, **body: Any) -> list[float]:
    answer = service.rank("a", user=user, **body)
    assert answer.status_code == 200, answer.text
    found: list[float] = answer.json()["probabilities"]
    return found


def test_the_gate_was_passed_by_every_form_of_the_graph(bundle: Bundle) -> None:
    halves = bundle.manifest.item_halves is not None
    assert [each.engine for each in bundle.manifest.parity] == ["ort", "ort, item halves"][: 1 + halves]
    widths = {spec.name: spec.shape[1] for spec in bundle.manifest.inputs if spec.source == "schema"}
    assert widths == {"request.ids": 1, "request.numbers": 2, "item.ids": 1, "item.numbers": 4}


def test_items_of_the_table_score_as_torch_scores_them(trained: Trained, service: Service) -> None:
    ids = [0, 1, ITEMS - 1, 2]
    frame = trained.prepared.items()[ids]
    items = {name: frame[f"item.{name}"].to_list() for name in ("id", "text", "price")}
    assert items["text"][2] is None
    assert ask(service, ids=ids) == pytest.approx(expected(trained, USER, items, 4), abs=1e-5)


def test_a_new_item_has_the_score_that_its_vector_gives(trained: Trained, service: Service) -> None:
    texts = [LIKED, DISLIKED, None]
    found = ask(service, ids=[STRANGE] * 3, items={"text": texts})
    items = {"id": [STRANGE] * 3, "text": texts}
    assert found == pytest.approx(expected(trained, USER, items, 3), abs=1e-5)
    liked, disliked, unknown = found
    assert liked > 0.75 > unknown > 0.25 > disliked
    other = ask(service, {"mood": [-1, 0]}, ids=[STRANGE] * 3, items={"text": texts})
    assert other[0] < 0.25 < other[2] < 0.75 < other[1]


def test_a_vector_in_the_body_comes_before_the_tables_and_null_does_not(service: Service) -> None:
    alone = ask(service, ids=[0, 1])
    swapped = ask(service, ids=[0, 1], items={"text": [DISLIKED, None]})
    assert swapped[0] < alone[0]
    assert swapped[1] == pytest.approx(alone[1], abs=1e-6)
    assert ask(service, {"mood": None}, ids=[0]) == ask(service, {}, ids=[0]) != ask(service, ids=[0])


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({"items": {"text": [LIKED, [1, 2]]}}, "/items/text/1", "expected 3 numbers, got 2"),
        ({"items": {"text": [None, ["1", 2, 3]]}}, "/items/text/1", "expected a number, got str"),
        ({"items": {"text": [[1, 2, 1e31], None]}}, "/items/text/0", "expected a finite number of at most"),
        ({"items": {"text": [LIKED]}}, "/items/text", "1 values for 2 candidates"),
        ({"user": {"mood": 7}}, "/user/mood", "expected a list, got int"),
        ({"user": {"mood": [1, 2, 3]}}, "/user/mood", "expected 2 numbers, got 3"),
    ],
    ids=repr,
)
def test_what_is_no_vector_is_refused_with_its_place(
    service: Service, body: dict[str, Any], pointer: str, detail: str
) -> None:
    answer = service.rank("a", ids=[0, 1], **body)
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert fault["detail"].startswith(detail)


def test_info_and_the_models_metadata_say_how_long_vectors_are(service: Service, bundle: Bundle) -> None:
    fields = {field["key"]: field for field in service.client.get("/info").json()["fields"]}
    assert {key: field["size"] for key, field in fields.items() if field["size"]} == {
        "user.mood": 2,
        "item.text": 3,
    }
    assert (fields["item.text"]["type"], fields["item.text"]["multiple"]) == ("number", False)
    inputs = service.client.get(f"/v2/models/{bundle.manifest.name}").json()["inputs"]
    assert [each for each in inputs if each["name"] in {"user.mood", "item.text"}] == [
        {"name": "user.mood", "datatype": "FP32", "shape": [1, 2]},
        {"name": "item.text", "datatype": "FP32", "shape": [-1, 3]},
    ]


def test_traffic_made_of_the_schema_is_answered(service: Service, bundle: Bundle) -> None:
    for asked in islice(Traffic.of(bundle, Mix(candidates={3: 1.0})), 5):
        assert len(asked.user["mood"]) == 2
        answer = service.client.post(asked.path, content=asked.body, headers=JSON)
        head, _, body = wire.http(bundle, asked).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        headers = dict(line.split(": ") for line in rest)
        tensors = service.client.post(first.split()[1], content=body, headers=headers)
        assert (answer.status_code, tensors.status_code) == (200, 200)
        found = wire.probabilities(tensors.content).tolist()
        assert found == pytest.approx(answer.json()["probabilities"], abs=1e-6)


def infer(service: Service, bundle: Bundle, inputs: list[dict[str, Any]], binary: bool) -> Any:
    """The response; `data` are lists, which travel in JSON or as bytes."""
    chunks = []
    if binary:
        sizes = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT8": "i1", "BOOL": "?"}
        chunks = [np.array(each["data"], sizes[each["datatype"]]).tobytes() for each in inputs]
        inputs = [
            {**{key: each[key] for key in each if key != "data"}, "parameters": {"binary_data_size": size}}
            for each, size in zip(inputs, map(len, chunks), strict=True)
        ]
    head = json.dumps({"inputs": inputs, "parameters": {"domain": "a"}}).encode()
    return service.client.post(
        f"/v2/models/{bundle.manifest.name}/infer",
        content=b"".join([head, *chunks]),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "bytes"])
@pytest.mark.parametrize("mood", [[2], [1, 2]], ids=repr)
def test_tensors_of_vectors_score_as_v1_does(
    service: Service, bundle: Bundle, binary: bool, mood: list[int]
) -> None:
    ids, texts = [STRANGE, 0, 1], [LIKED, DISLIKED, [0.0, 0.0, 0.0]]
    inputs = [
        tensor("ids", "INT64", [3], ids),
        tensor("user.mood", "INT64", mood, [1, 0]),
        tensor("item.text", "FP64", [3, 3], [*np.ravel(texts)]),
    ]
    answer = infer(service, bundle, inputs, binary)
    assert answer.status_code == 200, answer.text
    found = answer.json()["outputs"][0]["data"]
    assert found == pytest.approx(ask(service, ids=ids, items={"text": texts}), abs=1e-6)
    if not binary:
        nested = infer(service, bundle, [*inputs[:2], {**inputs[2], "data": texts}], binary)
        assert nested.json()["outputs"][0]["data"] == found


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "INT8", "BOOL"])
def test_any_numbers_will_do(service: Service, bundle: Bundle, datatype: str) -> None:
    inputs = [tensor("ids", "INT64", [1], [STRANGE]), tensor("item.text", datatype, [1, 3], [1, 0, 1])]
    answer = infer(service, bundle, inputs, binary=True)
    assert answer.status_code == 200, answer.text
    expected = ask(service, {}, ids=[STRANGE], items={"text": [[1, 0, 1]]})
    assert answer.json()["outputs"][0]["data"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (tensor("item.text", "FP32", [6], [0.0] * 6), "item.text: expected the shape [n, 3], got [6]"),
        (tensor("item.text", "FP32", [2, 2], [0.0] * 4), "item.text: expected the shape [n, 3], got [2, 2]"),
        (tensor("item.text", "FP32", [1, 3], [0.0] * 3), "item.text: 1 values for 2 candidates"),
        (tensor("item.text", "BYTES", [2, 3], ["a"] * 6), "item.text: expected a type of numbers, got BYTES"),
        (tensor("user.mood", "FP32", [2, 1], [0.0] * 2), "user.mood: expected the shape [2] or [1, 2], got"),
        (tensor("item.text", "FP32", [2, 3], [1e31] + [0.0] * 5), "item.text[0]: expected a finite number"),
    ],
    ids=lambda value: value["name"] + str(value["shape"]) if isinstance(value, dict) else "",
)
def test_tensors_of_another_shape_or_type_are_refused_by_name(
    service: Service, bundle: Bundle, given: dict[str, Any], line: str
) -> None:
    answer = infer(service, bundle, [tensor("ids", "INT64", [2], [0, 1]), given], binary=False)
    assert answer.status_code == 422
    assert line in answer.json()["error"]

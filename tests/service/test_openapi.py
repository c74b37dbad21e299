"""The API's document: a snapshot guards it, and requests made from it never break the service."""

import copy
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from loadtest.server import service as served
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import Publisher

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
RANK = "/v1/domains/{domain}/rank"
EVENTS = "/v1/events"
ADMIN = "/v1/admin/"
INFER = "/v2/models/{model}/infer"
KEY = "schema-0123456789abcdef"
GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


def test_the_document_is_the_snapshot(document):
    """To change the API on purpose: `python -m service openapi > tests/golden/openapi.json`."""
    assert document == json.loads(GOLDEN.read_text())


def test_every_route_is_described_and_every_model_of_the_wire_is_there(document):
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
    models = document["components"]["schemas"]
    for name in (
        "RankRequest",
        "RankAnswer",
        "Events",
        "Problem",
        "Promote",
        "Rollback",
        "Retire",
        "Collect",
    ):
        assert models[name]["examples"]
    asked = document["paths"][RANK]["post"]
    assert asked["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/RankRequest")
    assert set(asked["responses"]) >= {"200", "400", "404", "413", "415", "422", "503"}


def test_documented_examples_are_answered(start, document):
    service = start()
    models = document["components"]["schemas"]
    assert service.client.get("/docs").status_code == 200
    for example in models["RankRequest"]["examples"]:
        answer = service.client.post("/v1/domains/books/rank", json=example)
        # Its fields are another bundle's where they are refused; its shape never is.
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == set(models["RankAnswer"]["properties"])


@pytest.fixture(scope="module")
def address(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    publish = Publisher(f"directory:{folder / 'store'}")
    publish.raw(dict(bundle.packs()))
    settings = {
        "MDCTR_DRAIN_SECONDS": "0",
        "MDCTR_ADMIN_KEYS": json.dumps({"schema": KEY}),
        "MDCTR_USERS": "memory:",
    }
    with served(bundle.path, publish.url, folder / "log", settings) as url:
        yield url


def narrowed(document):
    """The document, where any text is legal and hardly any would be answered."""
    found = copy.deepcopy(document)
    names = {"domain": ["books", "cooking"], "model": ["tiny", "deep"], "version": ["00000000", "1"]}
    for operations in found["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in names:
                    parameter["schema"]["enum"] = names[parameter["name"]]
    # Lengths that fit are never guessed; and most tensors are of the model.
    infer = found["paths"][INFER]["post"]
    infer["parameters"] = [each for each in infer["parameters"] if each["in"] == "path"]
    models = found["components"]["schemas"]
    models["RequestParameters"]["properties"]["domain"]["enum"] = names["domain"]
    asked = models["InferenceRequest"]["properties"]
    asked["inputs"] |= {"minItems": 1, "maxItems": 2}
    asked["model_name"] = {"enum": [None, "tiny"]}
    asked["outputs"] = {"enum": [None, [], [{"name": "ids"}]]}
    models["InferenceInput"]["properties"] |= {
        "name": {"enum": ["ids", "user.id"]},
        "datatype": {"const": "INT64"},
        "shape": {"const": [1]},
        "data": {"enum": [[10], [[11]]]},
        "parameters": {"enum": [None, {}]},
    }
    models["InferenceInput"]["required"].append("data")
    return found


def test_requests_made_from_the_document_never_break_the_service(address, document):
    schema = schemathesis.openapi.from_dict(narrowed(document))
    schema.config.update(base_url=address)
    asked: Counter[tuple[str, int]] = Counter()
    refused: defaultdict[str, set[int]] = defaultdict(set)

    operations = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operations.append(found.ok())
    # The admin's last: they retire domains that others ask for.
    for operation in sorted(operations, key=lambda each: each.path.startswith(ADMIN)):

        @settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=st.one_of([operation.as_strategy(mode) for mode in GenerationMode]))
        def ask(case):
            keyed = case.path.startswith(ADMIN) and sum(asked.values()) % 4
            response = case.call(headers={"X-API-Key": KEY} if keyed else None)
            case.validate_response(response, checks=CHECKS)
            asked[case.path, response.status_code // 100] += 1
            refused[case.path].add(response.status_code)

        ask()
    # Both kinds of requests came through: those that are answered, and those that are refused.
    assert {status for path, status in asked if path == RANK} == {2, 4}
    assert {status for path, status in asked if path == INFER} == {2, 4}
    assert {status for path, status in asked if path == EVENTS} == {2, 4}
    assert {path for path, _ in asked} == set(document["paths"])
    # And past the key: most of the admin's routes were asked by an admin.
    for path in document["paths"]:
        if path.startswith(ADMIN):
            assert 401 in refused[path]
            assert refused[path] - {401}, path

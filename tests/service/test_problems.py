"""Requests that cannot be answered: status, type and place of each."""

import pytest

from service.contract.pack import DomainPack, Golden
from tests.service import bundles
from tests.service.conftest import JSON

RANK = "/v1/domains/books/rank"


def problem(answer, status, slug):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "request_id", "errors"}
    assert (body["status"], body["type"]) == (status, f"urn:mdctr:problem:{slug}")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.get_list("x-request-id") == [body["request_id"]]
    assert body["detail"]
    return body


def pointers(answer):
    return [fault["pointer"] for fault in problem(answer, 422, "invalid-request")["errors"]]


@pytest.mark.parametrize("body", ["", "{", "ids", '{"ids":[1],}', '{"ids":[1]} x', b"\xff\xfe", "[" * 5000])
def test_what_is_not_json_is_400(shared, body):
    problem(shared.client.post(RANK, content=body, headers=JSON), 400, "malformed-body")


@pytest.mark.parametrize(
    "media", [None, "text/plain", "application/jsonx", "application/x-www-form-urlencoded"]
)
def test_what_is_not_called_json_is_415(shared, media):
    headers = {"content-type": media} if media else {}
    problem(shared.client.post(RANK, content='{"ids":[10]}', headers=headers), 415, "unsupported-media-type")


def test_json_with_a_charset_is_json(shared):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert shared.client.post(RANK, content='{"ids":[10]}', headers=headers).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_is_413(start, chunked):
    service = start(max_body_bytes=100)
    for size, status in ((100, 200), (101, 413)):
        body = b'{"ids":[10]}'.ljust(size)
        answer = service.client.post(
            RANK, content=iter([body[:60], body[60:]]) if chunked else body, headers=JSON
        )
        assert answer.status_code == status
    body = problem(answer, 413, "body-too-large")
    assert "100 bytes" in body["detail"]


@pytest.mark.parametrize("domain", ["cooking", "Books", "_general", "b o", "%2e%2e", "x" * 65])
def test_a_domain_that_no_pack_answers_for_is_404(shared, domain):
    body = problem(shared.rank(domain), 404, "unknown-domain")
    assert body["instance"].startswith("/v1/domains/")


def test_paths_and_methods_that_are_not_there_are_problems_too(shared):
    problem(shared.client.get("/nowhere"), 404, "not-found")
    refused = shared.client.get(RANK)
    problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"ids": []}, ["/ids"]),
        ({"ids": None}, ["/ids"]),
        ({"ids": "10"}, ["/ids"]),
        ({"ids": ["10"]}, ["/ids/0"]),
        ({"ids": [10, True, 11, 1.0, None, [10]]}, ["/ids/1", "/ids/3", "/ids/4", "/ids/5"]),
        ({"surprise": 1}, ["/surprise"]),
        ({"unit": 1}, ["/unit"]),
        ({"top_k": 0}, ["/top_k"]),
        ({"top_k": True}, ["/top_k"]),
        ({"top_k": "1"}, ["/top_k"]),
        ({"user": []}, ["/user"]),
        ({"user": {"height": 3}}, ["/user/height"]),
        ({"user": {"a/b~c": 3}}, ["/user/a~1b~0c"]),
        ({"user": {"x" * 65: 3}}, ["/user/" + "x" * 65]),
        ({"user": {"hour": 3}}, ["/user/hour"]),
        ({"user": {"age": "31"}}, ["/user/age"]),
        ({"user": {"age": [31]}}, ["/user/age"]),
        ({"user": {"age": True}}, ["/user/age"]),
        ({"user": {"age": 1e31}}, ["/user/age"]),
        ({"user": {"id": "1"}}, ["/user/id"]),
        ({"user": {"genres": "crime"}}, ["/user/genres"]),
        ({"user": {"genres": [["crime"]]}}, ["/user/genres"]),
        ({"context": {"hour": 3.0}}, ["/context/hour"]),
        ({"context": {"age": 3}}, ["/context/age"]),
        ({"items": {"price": 3}}, ["/items/price"]),
        ({"items": {"price": []}}, ["/items/price"]),
        ({"items": {"price": [1, 2]}}, ["/items/price"]),
        ({"items": {"weight": [1]}}, ["/items/weight"]),
        ({"items": {"id": [10]}}, ["/items/id"]),
        ({"ids": [10, 11, 12], "items": {"price": [None, 1, "2"]}}, ["/items/price/2"]),
        ({"ids": [10, 11, 12], "items": {"tags": [None, ["new"], ["old", 3]]}}, ["/items/tags/2"]),
        ({"ids": [10, 11], "items": {"brand": ["acme", 7]}}, ["/items/brand/1"]),
        (
            {"user": {"age": "x", "no": 1}, "context": {"hour": "x"}, "items": {"price": ["x"], "tags": [3]}},
            ["/user/age", "/user/no", "/context/hour", "/items/price/0", "/items/tags/0"],
        ),
    ],
    ids=str,
)
def test_a_body_that_breaks_the_schema_is_422_at_its_places(shared, body, places):
    assert pointers(shared.rank(**body)) == places


def test_ids_are_required(shared):
    assert pointers(shared.client.post(RANK, json={})) == ["/ids"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400])
def test_numbers_that_are_not_finite_are_refused(shared, number):
    """Python's JSON readers take NaN, which RFC 8259 does not have."""
    body = f'{{"ids":[10,11],"items":{{"price":[1,{number}]}},"user":{{"age":{number}}}}}'
    answer = shared.client.post(RANK, content=body, headers=JSON)
    assert pointers(answer) == ["/user/age", "/items/price/1"]


def test_numbers_within_the_schema_that_overflow_the_network_are_refused(publish, start):
    # age 1e30 is legal and is scaled to 1e29; a weight of 1e10 takes it out of float32.
    pack = bundles.make_pack("books")
    pack.tensors["user_numbers"][:] = 1e10
    pack.tensors["item_numbers"][:] = -1e10
    golden = bundles.logits(pack.tensors, pack.golden.inputs).astype("float32")
    publish(DomainPack(pack.bundle, "books", pack.tensors, Golden(pack.golden.inputs, golden)))
    service = start()
    assert service.rank().status_code == 200
    answer = service.rank(user={"age": 1e30}, items={"price": [1e30]})
    assert pointers(answer) == [""]


def test_only_so_many_places_are_listed(shared):
    body = problem(shared.rank(ids=["x"] * 50), 422, "invalid-request")
    assert len(body["errors"]) == 20
    assert body["detail"] == "/ids/0: expected int, got str, and 49 more"


def test_no_answer_repeats_a_value(shared):
    for body in (
        {"user": {"age": "secret"}},
        {"ids": ["secret"]},
        {"top_k": "secret"},
        {"user": {"genres": "secret"}},
    ):
        assert "secret" not in shared.rank(**body).text


def test_candidates_are_bounded(start):
    service = start(max_candidates=3)
    assert service.rank(ids=[10] * 3).status_code == 200
    assert pointers(service.rank(ids=[10] * 4)) == ["/ids"]


def test_a_fault_of_ours_is_a_problem_that_tells_nothing(service, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("insides")

    monkeypatch.setattr("service.scoring.Scorer.rank", broken)
    answer = service.rank(headers={"X-Request-ID": "kept"})
    assert problem(answer, 500, "internal")["request_id"] == "kept"
    assert "insides" not in answer.text
    assert service.metric("mdctr_requests_total", domain="books", status="500") == 1

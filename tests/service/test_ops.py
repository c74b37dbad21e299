"""What operators ask, and what the process says of itself."""

import json
import logging

import structlog

from service.telemetry import configure_logs
from tests.service import bundles
from tests.service.conftest import Publisher, running
from tests.service.waiting import eventually


def test_alive_and_ready(shared):
    assert shared.client.get("/healthz").json() == {"status": "alive"}
    assert shared.client.get("/readyz").json() == {
        "ready": True,
        "draining": False,
        "settled": True,
        "from_shelf": False,
        "items": True,
        "domains": {"books": True, "films": True},
    }


def test_a_service_that_no_longer_follows_its_store_is_not_alive(service, monkeypatch):
    runtime = service.client.app.state.runtime
    follower = runtime.followers[0]
    follower.get_loop().call_soon_threadsafe(follower.cancel)
    eventually(lambda: service.client.get("/healthz").status_code == 503)


def test_draining_is_not_ready_but_still_answers_and_closes_connections(service):
    service.client.app.state.draining = True
    answer = service.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["draining"] is True
    ranked = service.rank()
    assert ranked.status_code == 200
    assert ranked.headers["connection"] == "close"


def test_readiness_needs_every_declared_domain_unless_the_general_pack_answers(bundle, tmp_path):
    publish = Publisher(f"directory:{tmp_path}")
    publish(bundles.make_pack("books"), bundles.make_pack("_general"))
    with (
        running(bundle, publish.url) as refusing,
        running(bundle, publish.url, unknown_domain="general") as general,
    ):
        eventually(general.ready)
        eventually(lambda: refusing.state("books")["serving"])
        assert refusing.client.get("/readyz").json()["domains"] == {"books": True, "films": False}
        refused = refusing.rank("films")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:mdctr:problem:not-ready")
        assert general.rank("films").status_code == 200


def test_info_says_which_fields_a_request_may_give(shared):
    info = shared.client.get("/info").json()
    assert info["bundle"] == "tiny-00000000"
    assert (info["items"], info["item_id"], info["engine"]) == (4, "int", "ort")
    assert {field["key"]: field["type"] for field in info["fields"]} == {
        "user.id": "int",
        "user.genres": "str",
        "user.age": "number",
        "context.hour": "int",
        "item.id": "int",
        "item.brand": "str",
        "item.tags": "str",
        "item.price": "number",
    }
    assert [field["key"] for field in info["fields"] if field["multiple"]] == ["user.genres", "item.tags"]


def test_domains_lists_the_general_pack_and_what_each_holds(shared):
    listed = shared.client.get("/v1/domains").json()
    assert [state["domain"] for state in listed["domains"]] == ["_general", "books", "films"]
    # 36 float32 rows and three more weights, see `bundles.OWNED`.
    size = 4 * (bundles.SCHEMA.rows + 3)
    for state in listed["domains"]:
        assert state["live"] == state["serving"]
        assert state["bytes"] == size


def test_one_line_an_answer_and_no_value_in_it(service):
    with structlog.testing.capture_logs() as lines:
        service.rank(user={"age": 123456, "genres": ["secret"]}, headers={"X-Request-ID": "abc"})
        service.rank(user={"age": "secret"})
        service.ready()
        service.client.get("/metrics")
    answered = [line for line in lines if line["event"] == "answered"]
    assert [line["status"] for line in answered] == [200, 422]
    assert {**answered[0], "ms": 0} == {
        "event": "answered",
        "log_level": "info",
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/domains/books/rank",
        "status": 200,
        "ms": 0,
        "domain": "books",
        "pack": service.state("books")["serving"],
        "candidates": 1,
    }
    assert "secret" not in str(lines)
    assert "123456" not in str(lines)


def test_logs_are_json_lines_whoever_wrote_them(capsys):
    kept, level = list(logging.root.handlers), logging.root.level
    try:
        configure_logs("json")
        structlog.get_logger().info("ours", number=1)
        logging.getLogger("library").warning("theirs %s", "too")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        logging.root.handlers[:], logging.root.level = kept, level
        structlog.reset_defaults()
    assert [(line["event"], line["level"]) for line in lines] == [("ours", "info"), ("theirs too", "warning")]
    assert lines[0]["number"] == 1
    assert all("timestamp" in line for line in lines)

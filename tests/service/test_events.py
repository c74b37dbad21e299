"""`POST /v1/events`."""

import json
import time

import pytest

from service.users._protocol import Click
from tests.service.conftest import JSON
from tests.service.fake_users import FakeUsers

CLICK = {"user": 42, "domain": "books", "item": 7, "kind": "click", "time": 100.0}
SHOWN = {**CLICK, "kind": "shown"}


@pytest.fixture
def users(monkeypatch):
    found = FakeUsers()
    monkeypatch.setattr("service.runtime.open_users", lambda url, forget: found)
    return found


@pytest.fixture
def service(start, users):
    return start(users="memory:")


def tell(service, *events, headers=None):
    return service.client.post("/v1/events", json={"events": list(events)}, headers=headers)


def recent(service, users, user):
    found = service.client.portal.call(users.read, user)
    return None if found is None else list(found.recent)


def test_clicks_are_kept_and_exposures_counted(service, users):
    later = {**CLICK, "domain": "films", "item": "x", "time": 200, "request_id": "r-1"}
    answer = tell(service, later, SHOWN, CLICK, {**SHOWN, "user": "other"})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 4})
    assert recent(service, users, "42") == [Click("books", 7, 100.0), Click("films", "x", 200.0)]
    assert recent(service, users, "other") is None
    assert service.metric("mdctr_events_total", kind="click") == 2
    assert service.metric("mdctr_events_total", kind="shown") == 2


def test_an_event_without_a_time_is_of_now(service, users):
    began = time.time()
    click = {name: value for name, value in CLICK.items() if name != "time"}
    assert tell(service, click).status_code == 202
    (kept,) = recent(service, users, "42")
    assert began - 0.001 <= kept.time <= time.time() + 0.001


def test_the_same_events_again_change_nothing(service, users):
    for _ in range(2):
        assert tell(service, CLICK, {**CLICK, "user": "42"}).status_code == 202
    assert recent(service, users, "42") == [Click("books", 7, 100.0)]


def test_the_last_50_are_kept(service, users):
    events = [{**CLICK, "item": item, "time": item} for item in range(80)]
    assert tell(service, *events[::-1]).status_code == 202
    assert [click.item for click in recent(service, users, "42")] == list(range(30, 80))


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"user": None}, "/events/1/user"),
        ({"user": True}, "/events/1/user"),
        ({"user": 4.5}, "/events/1/user"),
        ({"user": ""}, "/events/1/user"),
        ({"user": "x" * 257}, "/events/1/user"),
        ({"user": 2**64}, "/events/1/user"),
        ({"domain": "Books"}, "/events/1/domain"),
        ({"domain": "_general"}, "/events/1/domain"),
        ({"domain": "books\n"}, "/events/1/domain"),
        ({"item": [1]}, "/events/1/item"),
        ({"item": 1.5}, "/events/1/item"),
        ({"kind": "bought"}, "/events/1/kind"),
        ({"time": -1}, "/events/1/time"),
        ({"time": "now"}, "/events/1/time"),
        ({"time": 1e13}, "/events/1/time"),
        ({"time": time.time() + 3600}, "/events/1/time"),
        ({"request_id": "a b"}, "/events/1/request_id"),
        ({"note": "x"}, "/events/1/note"),
    ],
)
def test_one_wrong_event_and_none_is_taken(service, users, change, pointer):
    answer = tell(service, CLICK, {**CLICK, **change})
    assert answer.status_code == 422
    assert all(fault["pointer"].startswith(pointer) for fault in answer.json()["errors"])
    assert recent(service, users, "42") is None
    assert service.metric("mdctr_events_total", kind="click") == 0


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"{}", JSON, 422),
        (b'{"events": []}', JSON, 422),
        (b'{"events": [{}], "more": 1}', JSON, 422),
        (json.dumps({"events": [CLICK] * 1001}).encode(), JSON, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b" " * 2_000_001, JSON, 413),
        (
            b'{"events":[{"user":"\\ud800","domain":"books","item":1,"kind":"click"}]}',
            JSON,
            400,
        ),
    ],
)
def test_bodies_that_are_refused(service, body, headers, status):
    assert service.client.post("/v1/events", content=body, headers=headers).status_code == status


def test_a_thousand_events_are_one_request(service):
    events = [{**CLICK, "user": user} for user in range(1000)]
    assert tell(service, *events).json() == {"accepted": 1000}


def test_a_lost_store_is_said(service, users, monkeypatch):
    users.down = True
    answer = tell(service, CLICK)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert service.metric("mdctr_events_total", kind="click") == 0
    users.down = False
    monkeypatch.setattr("service.api.events._PATIENCE", 0.05)
    users.hangs = True
    assert tell(service, CLICK).status_code == 503
    users.hangs = False
    assert tell(service, CLICK).status_code == 202
    assert recent(service, users, "42") == [Click("books", 7, 100.0)]


def test_without_users_there_is_nothing_here(start):
    answer = tell(start(), CLICK)
    assert answer.status_code == 404
    assert "MDCTR_USERS" in answer.json()["detail"]


def test_events_are_for_who_may_rank(start, users):
    service = start(users="memory:", rank_keys={"shop": "0123456789abcdef"})
    assert tell(service, CLICK).status_code == 401
    assert tell(service, CLICK, headers={"x-api-key": "0123456789abcdeX"}).status_code == 401
    assert recent(service, users, "42") is None
    assert tell(service, CLICK, headers={"x-api-key": "0123456789abcdef"}).status_code == 202


def test_no_user_stands_in_a_log_line(service, capsys):
    tell(service, {**CLICK, "user": "someone-by-name"})
    service.rank(user={"id": "someone-by-name"})
    captured = capsys.readouterr()
    assert "someone-by-name" not in captured.out + captured.err

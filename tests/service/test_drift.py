"""What is measured of answers and events, so that a drift is seen."""

import json

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.drift import EDGES, Drift
from service.pack_info import PackInfo, forget
from service.telemetry import SAMPLED, WORKERS_FOLDER, Metrics, worker_ended
from tests.service import bundles
from tests.service.fake_users import FakeUsers
from tests.service.waiting import eventually

EVENT = {"user": 42, "domain": "books", "item": 7}


@pytest.fixture
def service(start, monkeypatch):
    monkeypatch.setattr("service.runtime.open_users", lambda url, forget: FakeUsers())
    return start(users="memory:")


def tell(service, *events):
    return service.client.post("/v1/events", json={"events": [{**EVENT, **event} for event in events]})


def told(service, domain="books"):
    names = ("shown", "shown_probability", "shown_variance", "clicked")
    return [service.metric(f"mdctr_{name}_total", domain=domain) for name in names]


def test_values_are_counted_beside_those_that_are_unknown(service):
    service.rank(
        user={"id": 77, "genres": ["crime", "x", "y"], "age": None},
        ids=[10, 99, 5, 5],
        items={"brand": ["nobody", None, "acme", "none"], "tags": [["new"], [], None, ["a", "b"]]},
    )
    counts = {
        field: service.metric("mdctr_values_total", field=field)
        for field in ("user.id", "user.genres", "user.age", "item.id", "item.brand", "item.tags")
    }
    # Null is no value, and a list has as many as are in it.
    assert counts == {
        "user.id": 1,
        "user.genres": 3,
        "user.age": 0,
        "item.id": 4,
        "item.brand": 3,
        "item.tags": 3,
    }


def test_scores_are_measured_of_every_so_many_rankings(service):
    probabilities = [service.rank(ids=[10, 11]).json()["probabilities"] for _ in range(SAMPLED + 1)]
    # One of each, and of two candidates once the one and once the other.
    measured = [probabilities[0][1], probabilities[SAMPLED][0]]
    assert service.metric("mdctr_scores_count", domain="books") == 2
    assert service.metric("mdctr_scores_sum", domain="books") == pytest.approx(sum(measured))
    for edge in (0.1, 0.5, 0.9):
        below = service.metric("mdctr_scores_bucket", domain="books", le=str(edge))
        assert below == sum(each <= edge for each in measured)
    assert service.metric("mdctr_stage_seconds_count", stage="queue") == 2
    assert service.metric("mdctr_stage_seconds_count", stage="engine") == SAMPLED + 1


@pytest.mark.parametrize("candidates", [1, 2, 50, 99])
def test_every_place_has_its_turn(candidates):
    registry = CollectorRegistry()
    drift = Drift(registry, str)
    for _ in range(candidates):
        drift.scored("books", np.arange(candidates) / 100)
    total = registry.get_sample_value("mdctr_scores_sum", {"domain": "books"})
    assert total == pytest.approx(candidates * (candidates - 1) / 200)


def test_edges_are_of_a_probability():
    assert list(EDGES) == sorted(set(EDGES))
    assert 0 < EDGES[0] < EDGES[-1] < 1


def test_clicks_are_counted_beside_the_probabilities_of_what_was_shown(service):
    answer = tell(
        service,
        {"kind": "shown", "probability": 0.25},
        {"kind": "shown", "probability": 0.5},
        {"kind": "shown", "probability": 0},
        {"kind": "shown", "probability": 1},
        {"kind": "shown"},
        {"kind": "click", "probability": 0.5},
        {"kind": "click"},
        {"kind": "shown", "probability": 0.5, "domain": "films"},
    )
    assert answer.status_code == 202
    # By hand: 0.25 + 0.5 + 0 + 1, and 0.25 * 0.75 + 0.5 * 0.5.
    assert told(service) == [4, 1.75, 0.4375, 1]
    assert told(service, "films") == [1, 0.5, 0.25, 0]


def test_events_of_a_domain_that_is_not_served_are_of_another(service):
    tell(service, {"kind": "shown", "probability": 0.5, "domain": "cooking"})
    assert told(service, "other") == [1, 0.5, 0.25, 0]
    assert told(service, "cooking") == [0, 0, 0, 0]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "0.5", True, [0.5]])
def test_what_is_no_probability_is_refused_and_not_counted(service, wrong):
    answer = tell(service, {"kind": "shown", "probability": 0.5}, {"kind": "shown", "probability": wrong})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/events/1/probability"
    assert told(service) == [0, 0, 0, 0]


@pytest.mark.parametrize("wrong", ["NaN", "Infinity"])
def test_nor_is_what_is_no_number(service, wrong):
    body = json.dumps({"events": [{**EVENT, "kind": "shown"}]}).replace("}]", f', "probability": {wrong}}}]')
    headers = {"content-type": "application/json"}
    assert service.client.post("/v1/events", content=body, headers=headers).status_code in {400, 422}
    assert told(service) == [0, 0, 0, 0]


def packs(service):
    lines = service.client.get("/metrics").text.splitlines()
    return {line for line in lines if line.startswith("mdctr_pack_info{")}


def test_the_pack_that_serves_is_shown_and_no_other(service, publish):
    def shown():
        states = service.client.get("/v1/domains").json()["domains"]
        return packs(service) == {
            f'mdctr_pack_info{{domain="{state["domain"]}",pack="{state["serving"]}"}} 1.0' for state in states
        }

    eventually(shown)
    before = packs(service)
    new = publish(bundles.make_pack("books", 5))
    eventually(lambda: service.state("books")["serving"] == new["books"])
    eventually(shown)
    assert len(packs(service)) == len(before) == 3
    assert packs(service) != before


def test_workers_show_what_serves_in_any_of_them(tmp_path, monkeypatch):
    one, other = PackInfo(tmp_path), PackInfo(tmp_path)

    def shown():
        (family,) = one.collect()
        return {(sample.labels["domain"], sample.labels["pack"]) for sample in family.samples}

    monkeypatch.setattr("os.getpid", lambda: 1)
    one.serves("tiny", {"books": "a", "films": "b"})
    monkeypatch.setattr("os.getpid", lambda: 2)
    other.serves("tiny", {"books": "c", "films": "b"})
    assert shown() == {("books", "a"), ("books", "c"), ("films", "b")}
    other.serves("tiny", {"books": "a"})
    other.serves("deep", {"books": "d"})
    assert shown() == {("books", "a"), ("books", "d"), ("films", "b")}
    forget(tmp_path, 2)
    forget(tmp_path, 2)
    assert shown() == {("books", "a"), ("films", "b")}


def test_a_worker_that_ended_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv(WORKERS_FOLDER, str(tmp_path))
    monkeypatch.setattr("os.getpid", lambda: 77)
    metrics = Metrics()
    metrics.serve("tiny", {"books": "a"})
    assert b'mdctr_pack_info{domain="books",pack="a"} 1.0' in metrics.text()
    worker_ended(77)
    assert b'pack="a"' not in metrics.text()


def test_only_domains_with_a_label_show_their_packs(monkeypatch):
    monkeypatch.setattr("service.telemetry._MOST_LABELS", 2)
    metrics = Metrics()
    metrics.serve("tiny", {"a": "1", "b": "2", "c": "3"})
    assert metrics.text().count(b"mdctr_pack_info{") == 2


def test_what_is_not_scored_in_time_is_counted_by_its_reason(service):
    (route, *_), admission = service.client.app.state.direct, service.client.app.state.admission

    def refused():
        return [
            service.metric("mdctr_refused_total", reason=each) for each in ("deadline", "permits", "late")
        ]

    assert refused() == [0, 0, 0]
    assert route.refuse("/v1/domains/books/rank", {}).status == 429
    assert refused() == [1, 0, 0]
    admission.waiting = admission.permits
    assert route.refuse("/v1/domains/books/rank", {}).status == 429
    admission.waiting = 0
    assert refused() == [1, 1, 0]


def test_what_was_begun_and_given_up_is_late(service, monkeypatch):
    async def hangs(*_, **__):
        from service.contract.errors import DeadlineExceeded

        raise DeadlineExceeded("the pack did not come in time")

    route = service.client.app.state.direct[0]
    monkeypatch.setattr(route, "_route", hangs)
    assert service.rank().status_code == 504
    assert service.metric("mdctr_refused_total", reason="late") == 1


def test_permits_are_shown_and_those_taken_given_back(start):
    service = start(permits=7)
    assert service.metric("mdctr_permits") == 7
    service.rank()
    service.rank(surprise=1)
    assert service.metric("mdctr_waiting") == 0
    assert "mdctr_waiting 0.0" in service.client.get("/metrics").text
    assert service.metric("mdctr_resident_bytes_limit") == 2_000_000_000

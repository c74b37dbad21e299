"""What a document may say, and how it is told what is wrong."""

from __future__ import annotations

import json
import math

import pytest

from service.contract.errors import MdctrError
from service.experiments.document import Experiments, ExperimentsError, parse
from tests.service.experiments.documents import document, experiment, read, weights


def fault(data: object) -> str:
    with pytest.raises(ExperimentsError) as caught:
        parse(data if isinstance(data, bytes) else json.dumps(data).encode())
    assert isinstance(caught.value, MdctrError)
    return str(caught.value)


TRIAL = {
    "bundle": "tiny-00000000",
    "against": {"books": "0" * 16},
    "shares": [0.01, 0.25],
    "hold_seconds": 60,
    "margin": 0.01,
    "until": "2030-01-01T00:00:00Z",
}


def test_a_document_is_frozen_and_its_defaults_are_everybody_at_once():
    found = read([experiment("one")], [])
    layer, one = found.by_name["one"]
    assert (layer, found.holdout, one.domains, one.targeting, one.guardrails) == ("l0", 0, None, {}, ())
    assert one.edges == ((0.5, 1.0), ("a", "b"))
    assert one.end(0) == one.end(2e9) == 1
    assert (one.arms["a"].changes, one.arms["b"].changes) == ((), ("fallback",))
    with pytest.raises(ValueError, match="frozen"):
        found.holdout = 1.0  # type: ignore[misc]


VERSION = {"books": "0123456789abcdef"}
CONTROL = {"weight": 1}


@pytest.mark.parametrize(
    ("changes", "place", "reason"),
    [
        ({"arms": weights(1, -1)}, "arms.b.weight", "greater than or equal to 0"),
        ({"arms": weights(1, math.nan)}, "arms.b.weight", "finite"),
        ({"arms": weights(1, "1")}, "arms.b.weight", "valid number"),
        ({"arms": weights(1, True)}, "arms.b.weight", "valid number"),
        ({"arms": weights(0, 0)}, "arms", "all weights are 0"),
        ({"arms": {}}, "arms", "at least 1"),
        ({"arms": {"a": CONTROL, "b": CONTROL}}, "arms", "changes nothing; here a, b"),
        ({"arms": {"b": {"weight": 1, "domain": "books"}}}, "arms", "changes nothing; here none"),
        (
            {"arms": {"a": CONTROL, "b": {"weight": 1, "domain": "films", "bundle": "star-1"}}},
            "arms.b",
            "domain and bundle",
        ),
        ({"arms": {"a": CONTROL, "B": CONTROL}}, "arms.B", "match pattern"),
        (
            {"arms": {"a": CONTROL, "b": {"weight": 1, "version": {"books": "x"}}}},
            "arms.b.version.books",
            "match",
        ),
        ({"arms": {"a": CONTROL, "b": {"weight": 1, "version": VERSION}}}, "arms.b.version", "`domains`"),
        (
            {"arms": {"a": CONTROL, "b": {"weight": 1, "version": VERSION}}, "domains": ["books", "films"]},
            "arms.b.version",
            "`domains`",
        ),
        ({"arms": {"a": CONTROL, "b": {"weight": 1, "fallback": "none"}}}, "arms.b.fallback", "'general'"),
        ({"unit": "device"}, "unit", "'user', 'session' or 'request'"),
        ({"slice": [0.5, 0.5]}, "slice", "holds nothing"),
        ({"slice": [0.5, 0.4]}, "slice", "ends before it begins"),
        ({"slice": [0.5, 1.1]}, "slice[1]", "less than or equal to 1"),
        ({"slice": [0.5]}, "slice[1]", "Field required"),
        ({"domains": []}, "domains", "at least 1"),
        ({"domains": ["_general"]}, "domains[0]", "match pattern"),
        ({"salt": "a/b"}, "salt", "match pattern"),
        ({"targeting": {"item.price": [1]}}, "targeting.item.price", "match pattern"),
        ({"targeting": {"user.age": []}}, "targeting.user.age", "at least 1"),
        ({"targeting": {"user.age": [1, 2.5]}}, "targeting.user.age[1]", "neither a text nor an integer"),
        ({"targeting": {"user.age": [True]}}, "targeting.user.age[0]", "neither a text nor an integer"),
        ({"start": "2026-11-02T08:00:00"}, "start", "timezone"),
        ({"start": "2026-11-02"}, "start", "timezone"),
        ({"start": "tomorrow"}, "start", "ISO 8601"),
        ({"start": "1790000000"}, "start", "ISO 8601"),
        ({"start": 1790000000}, "start", "ISO 8601"),
        ({"start": "2026-11-02T08:00:00Z", "stop": "2026-11-02T09:00:00+01:00"}, "stop", "not after `start`"),
        (
            {"ramp": [{"at": "2026-11-02T08:00Z", "share": 0.5}, {"at": "2026-11-03T08:00Z", "share": 0.1}]},
            "ramp[1].share",
            "0.1 after 0.5",
        ),
        (
            {"ramp": [{"at": "2026-11-02T08:00Z", "share": 0.1}, {"at": "2026-11-02T08:00Z", "share": 0.5}]},
            "ramp[1].at",
            "not after the step before",
        ),
        ({"guardrails": [{"metric": "ctr", "action": "stop"}]}, "guardrails[0]", "one bound"),
        (
            {"guardrails": [{"metric": "ctr", "min": 0, "max": 1, "action": "stop"}]},
            "guardrails[0]",
            "one bound",
        ),
        (
            {"guardrails": [{"metric": "ctr", "min": 0, "action": "panic"}]},
            "guardrails[0].action",
            "'alert' or 'stop'",
        ),
        (
            {"guardrails": [{"metric": "money", "min": 0, "action": "stop"}]},
            "guardrails[0].metric",
            "should match pattern",
        ),
        (
            {"arms": {"a": {"weight": 1, "stopped": True}, "b": {"weight": 1, "domain": "x"}}},
            "arms.a.stopped",
            "the control",
        ),
        ({"trial": TRIAL, "slice": [0.5, 1]}, "trial", "only experiments of the layer canary"),
        ({"trial": {**TRIAL, "shares": [0.1, 0.1]}}, "trial.shares", "they must rise"),
        ({"trial": {**TRIAL, "shares": [0.6]}}, "trial.shares", "0.5 at most"),
        ({"surprise": 1}, "surprise", "not permitted"),
    ],
)
def test_a_fault_names_its_place(changes, place, reason):
    text = fault(document([experiment("z", unit="user", slice=[0, 0.1]), experiment(**changes)]))
    start, _, detail = text.partition(": ")
    assert start == f"layers.l0.experiments[1].{place}"
    assert reason in detail


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "the document is not JSON: "),
        (b"\xff", "the document is not JSON: "),
        (b"[" * 100_000, "the document is not JSON: "),
        (b"[]", "the document: "),
        (document(version=2), "version: Input should be 1"),
        ({"layers": {}}, "version: Field required"),
        (document(holdout=1.5), "holdout: "),
        ({"version": 1, "layers": {"Ranking": {"experiments": []}}}, "layers.Ranking: "),
        (
            document([experiment("x", slice=[0.5, 1]), experiment("y", slice=[0, 0.6])]),
            "layers.l0.experiments[0].slice: it overlaps that of y",
        ),
        (
            document([experiment("x", slice=[0, 0.5]), experiment("y", slice=[0.5, 1], unit="request")]),
            "layers.l0.experiments[1].unit: not that of x",
        ),
        (
            document([experiment("x")], [experiment("x")]),
            "layers.l1.experiments[0].name: layers.l0 has an experiment of this name",
        ),
        (
            document([experiment("x")], [experiment("y", salt="x")]),
            "layers.l1.experiments[0].salt: x has the same",
        ),
        (b'{"version": 1, "layers": {"l": {"experiments": []}, "l": {"experiments": []}}}', "layers.l: "),
        (b'{"version": 1, "version": 1, "layers": {}}', "version: it stands twice"),
    ],
)
def test_what_is_wrong_with_the_whole_is_one_line(data, text):
    found = fault(data)
    assert found.startswith(text)
    assert "\n" not in found


def test_an_arm_that_stands_twice_is_not_passed_over():
    text = json.dumps(document([experiment()])).replace('"b": {', '"a": {"weight": 2}, "b": {', 1)
    assert fault(text.encode()) == "layers.l0.experiments[0].arms.a: it stands twice"


def test_all_faults_are_told_at_once():
    found = fault(document([experiment(unit="x", slice=[2, 3])], holdout=-1))
    for place in ("holdout", "l0.experiments[0].unit", "experiments[0].slice[0]", "experiments[0].slice[1]"):
        assert f"{place}: " in found


def test_only_tools_write_the_layer_of_canaries():
    data = json.dumps({"version": 1, "layers": {"canary": {"experiments": [experiment()]}}}).encode()
    assert fault(data) == "layers.canary: only tools write this layer"
    assert isinstance(parse(data, canary=True), Experiments)


def test_the_order_of_arms_in_a_document_means_nothing():
    arms = weights(1, 2, 0, 5)
    one, other = (
        read([experiment(arms=dict(order))]).by_name["x"][1].edges
        for order in (arms.items(), reversed(arms.items()))
    )
    assert one == other == ((0.125, 0.375, 1.0), ("a", "b", "d"))


def test_steps_before_the_start_are_as_of_the_start_and_none_after_the_stop_counts():
    steps = ((0, 0.1), (10, 0.2), (20, 0.5), (30, 1.0))
    ramp = [{"at": f"1970-01-01T00:00:{at:02}Z", "share": share} for at, share in steps]
    found = read(
        [experiment(slice=[0.5, 0.9], ramp=ramp, start="1970-01-01T00:00:15Z", stop="1970-01-01T00:00:30Z")]
    )
    one = found.by_name["x"][1]
    assert [one.end(now) for now in (-1, 0, 14.9, 15, 19.9, 20, 29.9, 30, 99)] == pytest.approx(
        [0.5, 0.5, 0.5, 0.58, 0.58, 0.7, 0.7, 0.5, 0.5]
    )

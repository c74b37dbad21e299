"""Experiments as flags, asked through the real SDK."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode, FlagNotFoundError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from service.contract import hashing
from service.experiments.assign import assign
from service.experiments.document import ExperimentsError, parse
from service.experiments.openfeature import ExperimentsProvider
from tests.service.experiments.documents import document, experiment

NOW = 1_767_225_600.0
ARMS = {"a": {"weight": 1}, "b": {"weight": 1, "version": {"books": "0" * 16}}}
LAYERS: list[list[dict[str, Any]]] = [
    [
        experiment("first", slice=[0, 0.5], domains=["books"], arms=ARMS),
        experiment("germans", slice=[0.5, 0.9], targeting={"user.country": ["DE"]}),
        experiment("over", slice=[0.9, 1], stop="2025-01-01T00:00:00Z"),
    ],
    [experiment("second", unit="session")],
]


def text(**changes: Any) -> bytes:
    return json.dumps(document(*LAYERS, **changes)).encode()


@pytest.fixture
def client():
    api.set_provider(ExperimentsProvider(text(), clock=lambda: NOW), "tests")
    yield api.get_client("tests")
    api.clear_providers()


def asked(key: str | None, **attributes: Any) -> EvaluationContext:
    return EvaluationContext(key, {"domain": "books", **attributes})


def test_an_arm_is_what_the_service_would_give(client: OpenFeatureClient) -> None:
    assert client.get_provider_status() is ProviderStatus.READY
    whole = parse(text())
    seen = set()
    for user in map(str, range(200)):
        given = {each.experiment: each.arm for each in assign(whole, {"user": user}, "books", {}, NOW)}
        found = client.get_string_details("first", "none", asked(user))
        assert found.value == given.get("first", "none")
        assert (found.variant, found.reason) == (
            (given["first"], Reason.SPLIT) if "first" in given else (None, Reason.DEFAULT)
        )
        assert found.flag_metadata == {"document": hashing.content(text()), "layer": "l0", "unit": "user"}
        changes = {"version": {"books": "0" * 16}} if found.value == "b" else {}
        default = {"default": True}
        wanted = changes if "first" in given else default
        assert client.get_object_value("first", default, asked(user)) == wanted
        seen.add(found.value)
    assert seen == {"a", "b", "none"}


def test_why_an_arm_or_the_default_was_given(client: OpenFeatureClient) -> None:
    def reasons(flag: str, **attributes: Any) -> set[Any]:
        contexts = (asked(str(user), **attributes) for user in range(100))
        return {client.get_string_details(flag, "none", each).reason for each in contexts}

    assert reasons("germans", user={"country": "DE"}) == {Reason.TARGETING_MATCH, Reason.DEFAULT}
    assert reasons("germans", user={"country": "AT"}) == reasons("germans") == {Reason.DEFAULT}
    assert reasons("first", domain="films") == {Reason.DEFAULT}
    assert reasons("over") == {Reason.DISABLED}


def test_a_layer_before_may_have_the_request(client: OpenFeatureClient) -> None:
    whole = parse(text())
    for user in map(str, range(50)):
        first = assign(whole, {"user": user, "session": "s"}, "books", {}, NOW)[0]
        found = client.get_string_details("second", "none", asked("s", user={"id": user}))
        taken = first.layer == "l0" and bool(first.change.changes)
        assert (found.reason is Reason.DEFAULT) is taken
    assert client.get_string_details("second", "none", asked("s")).reason is Reason.SPLIT


def test_what_cannot_be_answered_gives_the_default(client: OpenFeatureClient) -> None:
    unknown = client.get_string_details("third", "none", asked("1"))
    assert (unknown.value, unknown.error_code) == ("none", ErrorCode.FLAG_NOT_FOUND)
    nobody = client.get_string_details("first", "none", asked(None))
    assert (nobody.value, nobody.error_code) == ("none", ErrorCode.TARGETING_KEY_MISSING)
    for details in (
        client.get_boolean_details("first", True, asked("1")),
        client.get_integer_details("first", 1, asked("1")),
        client.get_float_details("first", 1.0, asked("1")),
    ):
        assert (details.value, details.error_code) == (1, ErrorCode.TYPE_MISMATCH)


def test_a_shadow_changes_nothing() -> None:
    arms = {"a": {"weight": 1}, "b": {"weight": 9, "fallback": "general", "shadow": True}}
    whole = json.dumps(document([experiment("x", arms=arms)])).encode()
    provider = ExperimentsProvider(whole)
    found = [provider.resolve_object_details("x", {"default": True}, asked(str(user))) for user in range(50)]
    assert {each.variant for each in found} == {"a", "b"}
    assert all(each.value == {} for each in found)


def test_another_document_is_taken_over_and_told(client: OpenFeatureClient) -> None:
    provider = ExperimentsProvider(text())
    told: list[list[str] | None] = []
    provider.attach(lambda _, __, details: told.append(details.flags_changed))
    with pytest.raises(ExperimentsError):
        provider.update(b"{")
    assert told == []
    provider.update(json.dumps(document(LAYERS[0][:2])).encode())
    assert told == [["over", "second"]]
    with pytest.raises(FlagNotFoundError, match="no experiment over"):
        provider.resolve_string_details("over", "none", asked("1"))

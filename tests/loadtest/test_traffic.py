from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from pydantic import ValidationError

from loadtest.catalogue import Options
from loadtest.catalogue import open as catalogue
from loadtest.traffic import Asked, Mix, Traffic
from service.contract.field import Field
from service.contract.schema import FeatureSchema

DOMAINS = ["books", "films", "music"]
ITEMS = np.arange(1000, 3000)


@pytest.fixture
def schema() -> FeatureSchema:
    return FeatureSchema(fields=catalogue(Options(items=2000)).fields)


def some(schema: FeatureSchema, count: int, seed: int = 0, **mix: object) -> list[Asked]:
    return list(islice(Traffic(schema, ITEMS, DOMAINS, Mix.model_validate(mix), seed), count))


def test_a_seed_is_a_stream(schema: FeatureSchema) -> None:
    assert some(schema, 20, 3) == some(schema, 20, 3)
    assert some(schema, 20, 3) != some(schema, 20, 4)


def test_a_body_has_every_field_of_a_request_and_items_that_exist(schema: FeatureSchema) -> None:
    for asked in some(schema, 50):
        body = json.loads(asked.body)
        assert body["user"].keys() == {"id", "age", "gender", "country"}
        assert body["context"].keys() == {"hour", "weekday", "device", "page"}
        assert set(body["ids"]) <= set(ITEMS.tolist())
        assert "unit" not in body
        head, _, sent = asked.http.partition(b"\r\n\r\n")
        assert head.startswith(f"POST /v1/domains/{asked.domain}/rank HTTP/1.1".encode())
        assert sent == asked.body


def test_a_user_has_the_same_fields_whenever_it_comes_back(schema: FeatureSchema) -> None:
    seen: dict[int, set[str]] = {}
    for asked in some(schema, 300, users=10):
        seen.setdefault(asked.user["id"], set()).add(json.dumps(asked.user))
    assert len(seen) == 10
    assert all(len(each) == 1 for each in seen.values())


def test_popularity_is_zipfs(schema: FeatureSchema) -> None:
    asked = some(schema, 4000, items_zipf=1.0, domains_zipf=1.0, candidates={20: 1.0})
    counts = np.array([count for _, count in Counter(at for each in asked for at in each.ids).most_common()])
    # The r-th most popular has 1/r of the first's share: a straight line of slope -1 in logarithms.
    rank = np.arange(1, 101)
    slope = np.polyfit(np.log(rank), np.log(counts[:100]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    domains = Counter(each.domain for each in asked)
    assert domains["books"] / domains["films"] == pytest.approx(2, rel=0.15)
    assert domains["books"] / domains["music"] == pytest.approx(3, rel=0.15)


def test_without_an_exponent_all_are_equally_popular(schema: FeatureSchema) -> None:
    domains = Counter(each.domain for each in some(schema, 3000, domains_zipf=0.0))
    assert max(domains.values()) / min(domains.values()) < 1.2


def test_counts_of_candidates_have_their_shares(schema: FeatureSchema) -> None:
    counts = Counter(len(each.ids) for each in some(schema, 2000, candidates={10: 3.0, 100: 1.0}))
    assert counts.keys() == {10, 100}
    assert counts[10] / 2000 == pytest.approx(0.75, abs=0.04)
    with pytest.raises(ValidationError, match="a share above 0"):
        Mix(candidates={10: 0.0})


def test_units_and_clicks(schema: FeatureSchema) -> None:
    traffic = Traffic(schema, ITEMS, DOMAINS, Mix(units=True, click_rate=0.25))
    clicks = []
    for at in range(1000):
        asked = traffic.ask()
        assert asked.unit == f"unit-{asked.user['id']}"
        click = traffic.click(asked, f"r{at}")
        if click is not None:
            clicks.append(click)
            assert click["item"] in asked.ids
            assert click["request_id"] == f"r{at}"
    assert len(clicks) / 1000 == pytest.approx(0.25, abs=0.05)


def test_every_kind_of_field_gets_values_that_its_schema_takes() -> None:
    fields = (
        Field(name="city", owner="user", kind="vocabulary", values=("bonn", "köln")),
        Field(name="liked", owner="user", kind="hashed", buckets=10, multiple=3),
        Field(name="age", owner="user", kind="number", mean=40.0, std=10.0),
        Field(name="mood", owner="user", kind="vector", size=30),
        Field(name="page", owner="context", kind="vocabulary", dtype="int", values=(3, 5)),
        Field(name="id", owner="item", kind="hashed", dtype="int", buckets=100),
    )
    schema = FeatureSchema(fields=fields)
    for asked in islice(Traffic(schema, ITEMS, DOMAINS), 50):
        assert asked.user["city"] in {"bonn", "köln"}
        assert 1 <= len(asked.user["liked"]) <= 3
        assert asked.context["page"] in {3, 5}
        assert 0.3 < np.linalg.norm(asked.user["mood"]) < 2
        given = {f"user.{name}": [value] for name, value in asked.user.items() if name != "id"}
        schema.encode("request", {**given, "context.page": [asked.context["page"]]}, 1)

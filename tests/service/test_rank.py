"""Good rank requests over the wire. Expected probabilities are numpy's, from the same weights."""

import math

import numpy as np
import pytest

from service.contract.pack import version
from tests.service import bundles


def expected(request, items, n, domain="books", calibration=(1.0, 0.0)):
    """Probabilities of raw columns by `Field.key`."""
    logits = bundles.logits(bundles.make_pack(domain).tensors, bundles.inputs_of(request, items, n))
    return [1 / (1 + math.exp(-(calibration[0] * logit + calibration[1]))) for logit in logits]


def columns(**items):
    return {f"item.{name}": values for name, values in items.items()}


def test_the_answer_has_exactly_what_the_contract_says(shared):
    answer = shared.rank("films", ids=[10, 11])
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("request_id") == answer.headers["x-request-id"]
    np.testing.assert_allclose(
        body.pop("probabilities"),
        expected({}, {key: column[:2] for key, column in bundles.ITEMS.items()}, 2, domain="films"),
        atol=1e-6,
    )
    assert body == {
        "bundle": "tiny-00000000",
        "domain": "films",
        "pack": version(bundles.make_pack("films").to_bytes()),
        "experiment": None,
        "arm": None,
        "ids": [10, 11],
    }


def test_body_then_item_table_then_unknown(shared):
    answer = shared.rank(
        user={"id": 2, "genres": ["drama", "crime", "nothing"], "age": 45},
        context={"hour": 20},
        ids=[10, 11, 99, 12345],
        items={"price": [None, 1.5, 2, None], "tags": [["old"], None, ["new", "old"], []]},
    )
    # 10: table's price, body's tags. 11: body's price, table's tags. 99: an embedding for its id, no row.
    # 12345: nothing is known of it at all.
    probabilities = expected(
        {
            "user.id": [2],
            "user.genres": [["drama", "crime", "nothing"]],
            "user.age": [45],
            "context.hour": [20],
        },
        columns(
            id=[10, 11, 99, 12345],
            brand=["acme", "zeta", None, None],
            tags=[["old"], ["new", "old"], ["new", "old"], []],
            price=[5.0, 1.5, 2, None],
        ),
        4,
    )
    np.testing.assert_allclose(answer.json()["probabilities"], probabilities, atol=1e-6)


def test_null_and_absent_fields_are_the_same(shared):
    absent = shared.rank().json()["probabilities"]
    null = shared.rank(user={"id": None, "age": None, "genres": None}, context={"hour": None}).json()
    assert null["probabilities"] == absent
    assert shared.rank(items={"price": [None]}).json()["probabilities"] == absent


def test_candidates_keep_their_order_and_may_repeat(shared):
    answer = shared.rank(ids=[13, 10, 13, 10, 13]).json()
    assert answer["ids"] == [13, 10, 13, 10, 13]
    first, second = answer["probabilities"][:2]
    assert first != second
    assert answer["probabilities"] == [first, second, first, second, first]


def test_top_k_is_the_best_first_and_ties_in_their_order(shared):
    ids = [10, 11, 12, 13, 11, 99]
    everything = shared.rank(ids=ids).json()
    best = sorted(zip(ids, everything["probabilities"], strict=True), key=lambda pair: -pair[1])
    for top_k in (1, 3, 6, 100):
        answer = shared.rank(ids=ids, top_k=top_k).json()
        assert list(zip(answer["ids"], answer["probabilities"], strict=True)) == best[:top_k]


def test_calibration_moves_with_the_pack(start, publish):
    publish(bundles.make_pack("books", calibration=(0.5, -2.0)))
    answer = start().rank(ids=[10]).json()
    row = {key: column[:1] for key, column in bundles.ITEMS.items()}
    assert answer["probabilities"] == pytest.approx(expected({}, row, 1, calibration=(0.5, -2.0)), abs=1e-6)


def test_domains_have_packs_of_their_own(shared):
    books, films = shared.rank("books").json(), shared.rank("films").json()
    assert books["pack"] != films["pack"]
    assert books["probabilities"] != films["probabilities"]


def test_an_unknown_domain_is_the_general_packs_where_the_policy_says_so(start):
    service = start(unknown_domain="general")
    answer = service.rank("cooking").json()
    assert answer["domain"] == "cooking"
    assert answer["pack"] == version(bundles.make_pack("_general").to_bytes())
    row = {key: column[:1] for key, column in bundles.ITEMS.items()}
    assert answer["probabilities"] == pytest.approx(expected({}, row, 1, domain="_general"), abs=1e-6)
    assert service.rank("books").json()["pack"] == version(bundles.make_pack("books").to_bytes())
    assert service.rank("_general").status_code == 404  # not a domain's name


def test_server_timing_says_where_the_time_went(shared):
    header = shared.rank().headers["server-timing"]
    parts = {part.split(";dur=")[0]: float(part.split(";dur=")[1]) for part in header.split(", ")}
    assert list(parts) == ["queue", "features", "engine", "total"]
    assert 0 < parts["features"] + parts["engine"] <= parts["total"]


@pytest.mark.parametrize("given", ["abc", "A.b_c:d-9", "x" * 128])
def test_a_well_formed_request_id_is_kept(shared, given):
    answer = shared.rank(headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "semi;colon", "\u00e9"])
def test_any_other_request_id_is_replaced(shared, given):
    answer = shared.rank(headers=[("X-Request-ID", given.encode("latin-1"))])
    made = answer.json()["request_id"]
    assert answer.headers["x-request-id"] == made != given
    assert len(made) == 32
    assert int(made, 16) >= 0


def test_unknown_values_are_counted_by_field(service):
    service.rank(
        user={"id": 77, "genres": ["crime", "x", "y"]},
        ids=[10, 99, 5, 5],
        items={"brand": ["nobody", None, "acme", "none"]},
    )
    counts = {
        field: service.metric("mdctr_unknown_values_total", field=field)
        for field in ("user.id", "user.genres", "item.brand", "item.id", "user.age")
    }
    # 99 and twice 5 have no row in the item table.
    assert counts == {"user.id": 1, "user.genres": 2, "item.brand": 2, "item.id": 3, "user.age": 0}


def test_requests_are_counted_by_domain_and_status_and_strangers_as_other(service):
    service.rank("books")
    service.rank("books", surprise=1)
    service.rank("cooking")
    service.rank("no-such-" + "x" * 40)
    assert service.metric("mdctr_requests_total", domain="books", status="200") == 1
    assert service.metric("mdctr_requests_total", domain="books", status="422") == 1
    assert service.metric("mdctr_requests_total", domain="other", status="404") == 2
    assert service.metric("mdctr_request_seconds_count", domain="books") == 2
    assert service.metric("mdctr_candidates_sum") == 1
    assert "cooking" not in service.client.get("/metrics").text


def test_the_null_engine_answers_one_half(start):
    answer = start(engine="null", golden_tolerance=1.0).rank(ids=[10, 11, 12])
    assert answer.json()["probabilities"] == [0.5, 0.5, 0.5]

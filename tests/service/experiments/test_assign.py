"""Who is in which arm. The golden file was written once: changing it sorts running experiments anew."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.contract.hashing import position
from service.experiments.assign import Units, assign, held_out
from service.experiments.document import parse
from tests.service.experiments.documents import experiment, read, weights

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "assignment.json").read_text())
MANY = [f"user-{number}" for number in range(100_000)]
ENOUGH = MANY[:5000]
SHARES = st.floats(0, 1)


def arms(experiments, unit, *, kind="user", domain="books", now=0.0, **fields):
    """By experiment, the arm that a unit is in."""
    return {each.experiment: each.arm for each in assign(experiments, {kind: unit}, domain, fields, now)}


def at(seconds):
    return f"1970-01-01T00:00:{seconds:02}Z"


def test_assignments_are_those_of_the_golden_file():
    experiments = parse(json.dumps(GOLDEN["document"]).encode())
    assert len(GOLDEN["arms"]) == 100
    for unit, expected in GOLDEN["arms"].items():
        assert arms(experiments, unit, now=GOLDEN["now"]) == expected


def test_a_position_is_53_bits_of_an_xxh3():
    assert xxhash.xxh3_64_hexdigest(b"layer:ranking/42") == "c314905e91aa863a"
    # By hand: 0xc314905e91aa863a >> 11 is 0x1862920bd23550, over 0x20000000000000.
    assert position("layer:ranking", "42") == 0x1862920BD23550 / 0x20000000000000
    assert position("arm:x", "ü") == (xxhash.xxh3_64_intdigest("arm:x/ü".encode()) >> 11) / 2**53


@given(st.text(st.characters()), st.text(st.characters()))
def test_a_position_is_at_least_0_and_below_1_whatever_the_unit(salt, unit):
    assert 0 <= position(salt, unit) < 1


@pytest.mark.parametrize("salt", ["holdout", "layer:ranking", "arm:x"])
def test_positions_are_uniform(salt):
    found, _ = np.histogram([position(salt, unit) for unit in MANY], 100, (0, 1))
    assert stats.chisquare(found).pvalue > 0.001


def test_arms_have_units_in_proportion_to_their_weights():
    found = read([experiment(arms=weights(5, 3, 0, 2))])
    counts = Counter(arms(found, unit)["x"] for unit in MANY)
    expected = {"a": 50_000, "b": 30_000, "d": 20_000}
    assert counts.keys() == expected.keys()
    assert stats.chisquare([counts[arm] for arm in expected], [*expected.values()]).pvalue > 0.001


def test_layers_are_independent_of_each_other_and_of_arms():
    found = read(
        [experiment("v", slice=[0, 0.4]), experiment("w", slice=[0.4, 1], arms=weights(2, 1, 1))],
        [experiment("x", slice=[0, 0.3]), experiment("y", slice=[0.3, 0.8], arms=weights(1, 3))],
    )
    cells: Counter[tuple[str, str]] = Counter()
    for unit in MANY:
        there = {
            each.layer: f"{each.experiment}.{each.arm}" for each in assign(found, {"user": unit}, "", {}, 0)
        }
        cells[there["l0"], there.get("l1", "none")] += 1
    table = [[cells[one, other] for other in {b for _, b in cells}] for one in {a for a, _ in cells}]
    assert np.shape(table) == (5, 5)
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_where_a_unit_stands_in_a_layer_says_nothing_of_its_arm():
    places = np.array([[position(salt, unit) for salt in ("layer:x", "arm:x", "holdout")] for unit in MANY])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        table, _, _ = np.histogram2d(places[:, one], places[:, other], 10, [(0, 1), (0, 1)])
        assert stats.chi2_contingency(table).pvalue > 0.001


@given(st.text(), st.tuples(SHARES, SHARES), st.lists(SHARES, min_size=2, max_size=5), st.integers(1, 9))
def test_who_is_in_stays_in_with_the_same_arm_as_a_ramp_rises(unit, slice_, shares, weight):
    low, high = sorted(slice_)
    if low == high:
        return
    ramp = [{"at": at(step), "share": share} for step, share in enumerate(sorted(shares))]
    found = read([experiment(slice=[low, high], ramp=ramp, arms=weights(1, weight))])
    each = [arms(found, unit, now=step) for step in range(len(ramp))]
    for before, after in pairwise(each):
        assert not before or before == after


def test_a_ramp_has_its_share_of_a_slice():
    ramp = [{"at": at(step), "share": step / 10} for step in range(11)]
    found = read([experiment(slice=[0.2, 0.7], ramp=ramp)])
    for step in range(11):
        inside = sum(bool(arms(found, unit, now=step)) for unit in ENOUGH)
        assert inside == sum(0.2 <= position("layer:l0", unit) < 0.2 + step / 20 for unit in ENOUGH)


def test_a_change_in_one_layer_changes_nothing_in_another():
    before = read([experiment("x")], [experiment("y", arms=weights(1, 1))])
    after = read([experiment("x")], [experiment("y", arms=weights(1, 9), slice=[0, 0.5])])
    moved = 0
    for unit in ENOUGH:
        one, other = arms(before, unit), arms(after, unit)
        assert one["x"] == other["x"]
        moved += one != other
    assert moved > 1000


def test_another_salt_sorts_anew_and_keeps_who_is_in():
    one, other = (read([experiment(slice=[0, 0.5], salt=salt)]) for salt in ("p", "q"))
    cells = Counter((arms(one, unit).get("x"), arms(other, unit).get("x")) for unit in ENOUGH)
    assert {(None, None), ("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")} == cells.keys()


def test_who_is_held_out_is_in_nothing_and_nobody_else_moves():
    layers = [experiment("x")], [experiment("y", unit="session")]
    free, held = read(*layers), read(*layers, holdout=0.1)
    out = 0
    for unit in ENOUGH:
        units: Units = {"user": unit, "session": f"s-{unit}"}
        found = assign(held, units, "books", {}, 0)
        if held_out(held, units):
            out += 1
            assert found == ()
        else:
            assert found == assign(free, units, "books", {}, 0)
            assert len(found) == 2
    assert stats.binomtest(out, len(ENOUGH), 0.1).pvalue > 0.001


def test_the_widest_unit_decides_who_is_held_out():
    found = read(holdout=0.5)
    inside = next(unit for unit in ENOUGH if position("holdout", unit) >= 0.5)
    outside = next(unit for unit in ENOUGH if position("holdout", unit) < 0.5)
    assert held_out(found, {"request": inside, "session": inside, "user": outside})
    assert not held_out(found, {"request": outside, "session": outside, "user": inside})
    assert held_out(found, {"request": inside, "session": outside})
    assert held_out(found, {"request": outside})
    assert not held_out(found, {})


def test_a_unit_is_in_one_experiment_of_a_layer_at_most():
    found = read(
        [experiment("x", slice=[0, 0.3]), experiment("y", slice=[0.5, 1]), experiment("z", slice=[0.3, 0.4])]
    )
    counts = Counter(tuple(arms(found, unit)) for unit in ENOUGH)
    assert counts.keys() == {("x",), ("y",), ("z",), ()}
    expected = {("x",): 0.3, ("y",): 0.5, ("z",): 0.1, (): 0.1}
    p = stats.chisquare(
        [counts[each] for each in expected], [part * len(ENOUGH) for part in expected.values()]
    ).pvalue
    assert p > 0.001


def test_a_request_without_the_unit_is_in_nothing():
    found = read([experiment("x", unit="session")])
    assert arms(found, "u", kind="session")
    assert not arms(found, "u", kind="user")


def test_domains_and_targeting_must_all_be_met():
    found = read(
        [
            experiment(
                domains=["books", "films"], targeting={"user.age": [31, "32"], "context.device": ["phone"]}
            )
        ]
    )
    phone = {"device": "phone"}
    for user, context, domain, inside in (
        ({"age": 31}, phone, "books", True),
        ({"age": "31"}, phone, "books", True),
        ({"age": 32, "other": 1}, phone, "films", True),
        ({"age": [7, 31]}, {"device": ["phone", "x"]}, "books", True),
        ({"age": 31}, phone, "music", False),
        ({"age": 30}, phone, "books", False),
        ({"age": 31.0}, phone, "books", False),
        ({"age": None}, phone, "books", False),
        ({"age": {}}, phone, "books", False),
        ({"age": 10**5000}, phone, "books", False),
        ({"age": []}, phone, "books", False),
        ({}, phone, "books", False),
        ({"age": 31}, {}, "books", False),
        ({"age": 31}, {"device": "desk"}, "books", False),
    ):
        assert bool(arms(found, "u", domain=domain, user=user, context=context)) == inside, (user, context)
    assert not arms(found, "u")  # not even the owner of a field is there
    one = read([experiment(targeting={"user.flag": [1]})])
    assert not arms(one, "u", user={"flag": True})


def test_an_experiment_runs_from_its_start_until_its_stop():
    found = read([experiment(start=at(10), stop=at(20))])
    assert [bool(arms(found, "u", now=now)) for now in (0, 9.99, 10, 19.99, 20, 99)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_an_assignment_says_what_to_do():
    found = read([experiment(arms=weights(0, 1))])
    (only,) = assign(found, {"user": "u"}, "books", {}, 0)
    assert only == ("l0", "x", "b", "user", found.by_name["x"][1].arms["b"], False)
    assert (only.change.domain, only.change.changes) == ("d1", ("domain",))


def test_a_stopped_arm_moves_nobody_else():
    arms = weights(1, 1, 2)
    stopped = {**arms, "b": {**arms["b"], "stopped": True}}
    before, after = (read([experiment(arms=each)]) for each in (arms, stopped))
    for unit in map(str, range(300)):
        was, now = (assign(each, {"user": unit}, "books", {}, 0.0) for each in (before, after))
        assert now == (() if was[0].arm == "b" else was)

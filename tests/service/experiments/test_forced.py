"""Arms that testers choose."""

from __future__ import annotations

import pytest

from service.contract.errors import RequestError
from service.experiments.assign import Units, assign
from service.experiments.forced import ForceRefused, sign, verify
from tests.service.experiments.documents import experiment, read, weights

SECRET = "a secret of some length"
EXPIRES = 1_793_606_400
NOW = EXPIRES - 60.0


@pytest.fixture
def experiments():
    return read(
        [
            experiment("x", slice=[0, 0.1], domains=["books"], arms=weights(1, 0)),
            experiment("y", slice=[0.1, 1]),
        ],
        [experiment("z")],
        holdout=0.0,
    )


def test_a_signature_is_an_hmac_sha256():
    # printf 'x=b;1793606400' | openssl dgst -sha256 -hmac 'a secret of some length'
    assert sign(SECRET, "x", "b", EXPIRES) == (
        "x=b;1793606400;db86d346e69a5b6a7a3dea3109d0c4ef8ec6ab10cd2ce7b456815aa194aeb9b1"
    )


def test_a_forced_arm_takes_its_layer_and_no_other(experiments):
    forced = verify(SECRET, sign(SECRET, "x", "b", EXPIRES), experiments, NOW)
    assert (forced.layer, forced.experiment, forced.arm, forced.forced) == ("l0", "x", "b", True)
    units: Units = {"user": "user-1"}
    usual = assign(experiments, units, "books", {}, NOW)
    assert [each.experiment for each in usual] == ["y", "z"]
    assert assign(experiments, units, "books", {}, NOW, forced=forced) == (forced, usual[1])
    assert assign(experiments, units, "films", {}, NOW, forced=forced) == usual


def test_a_forced_arm_is_given_whatever_keeps_the_unit_out():
    out = experiment(
        slice=[0, 1e-9],
        start="2100-01-01T00:00:00Z",
        targeting={"user.age": [1]},
    )
    found = read([out], [experiment("y")], holdout=1)
    forced = verify(SECRET, sign(SECRET, "x", "b", EXPIRES), found, NOW)
    assert assign(found, {"user": "u"}, "books", {}, NOW, forced=forced) == (forced,)
    assert assign(found, {}, "books", {}, NOW, forced=forced) == (forced,)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is not <experiment>"),
        ("x=b", "is not <experiment>"),
        (f"x=b;soon;{'0' * 64}", "is not <experiment>"),
        (f"x=b;{EXPIRES};é", "is not <experiment>"),
        (f"{sign(SECRET, 'x', 'b', EXPIRES)}\n", "is not <experiment>"),
        (sign(SECRET, "x", "b", EXPIRES).upper(), "is not <experiment>"),
        (f"x=b;{EXPIRES};{'0' * 64}", "signature"),
        (sign("another secret", "x", "b", EXPIRES), "signature"),
        (sign(SECRET, "x", "a", EXPIRES).replace("=a", "=b"), "signature"),
        (sign(SECRET, "x", "b", EXPIRES).replace(f"{EXPIRES}", f"{EXPIRES + 1}"), "signature"),
        (sign("another secret", "nothing", "b", EXPIRES), "signature"),
        (sign(SECRET, "x", "b", int(NOW)), "expired"),
        (sign(SECRET, "nothing", "b", EXPIRES), "no experiment nothing"),
        (sign(SECRET, "x", "c", EXPIRES), "x has no arm c"),
    ],
)
def test_what_cannot_be_forced_is_refused_with_the_reason(experiments, value, reason):
    with pytest.raises(ForceRefused, match=reason) as caught:
        verify(SECRET, value, experiments, NOW)
    assert isinstance(caught.value, RequestError)


def test_nothing_can_be_forced_without_a_secret(experiments):
    with pytest.raises(ForceRefused, match="there is no secret"):
        verify("", sign("", "x", "b", EXPIRES), experiments, NOW)

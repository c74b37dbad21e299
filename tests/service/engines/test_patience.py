"""How long to wait; the means are by hand."""

import pytest

from service.engines._patience import Patience


def test_who_comes_alone_never_waits():
    patience = Patience(1e-3)
    for _ in range(10):
        assert patience.seconds(1) == 0
        patience.launched(1)


def test_as_many_as_came_together_are_expected():
    patience = Patience(1e-3)
    patience.launched(9)  # a quarter of the way from 1 to 9
    assert patience.expected == pytest.approx(3.0)
    assert patience.seconds(2) == 1e-3
    assert patience.seconds(3) == 0
    patience.launched(1)
    assert patience.expected == pytest.approx(2.5)


def test_they_are_forgotten():
    patience = Patience(1e-3)
    patience.launched(100)
    for _ in range(20):
        patience.launched(1)
    assert patience.seconds(1) == 0


def test_without_a_bound_nobody_waits():
    patience = Patience(0.0)
    patience.launched(100)
    assert patience.seconds(1) == 0

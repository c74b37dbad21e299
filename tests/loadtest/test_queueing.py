"""M/D/1 against Pollaczek and Khinchine, a calculation by hand, and Lindley's recursion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from loadtest.queueing import mean_wait, wait_quantile, waits, waits_at_most
from loadtest.sender import poisson


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_the_mean_of_the_distribution_is_pollaczek_and_khinchines(load: float) -> None:
    service = 2e-3
    far = wait_quantile(0.999999, load / service, service)
    mean = quad(
        lambda t: 1 - waits_at_most(t, load / service, service),
        0,
        far,
        points=np.arange(service, min(far, 40 * service), service),
        limit=300,
    )[0]
    assert mean == pytest.approx(mean_wait(load / service, service), rel=1e-3)
    assert mean_wait(load / service, service) == pytest.approx(load * service / (2 * (1 - load)))


def test_the_first_terms_are_those_of_erlang() -> None:
    # P(W = 0) = 1 - rho; up to one service time (1 - rho) exp(lambda t), by hand for rho = 0.5.
    assert waits_at_most(0.0, 0.5, 1.0) == pytest.approx(0.5)
    assert waits_at_most(0.5, 0.5, 1.0) == pytest.approx(0.5 * math.exp(0.25))
    assert waits_at_most(1.5, 0.5, 1.0) == pytest.approx(
        0.5 * (math.exp(0.75) - 0.25 * math.exp(0.25)), rel=1e-12
    )
    assert waits_at_most(-0.1, 0.5, 1.0) == 0
    assert wait_quantile(0.4, 0.5, 1.0) == 0


def test_many_alternating_terms_still_add_up() -> None:
    shares = [waits_at_most(t, 0.95, 1.0) for t in (10.0, 50.0, 100.0, 200.0)]
    assert shares == sorted(shares)
    assert 0.99 < shares[-1] < 1
    # The tail falls like exp(-theta t) with theta the root of exp(theta) = 1 + theta / lambda.
    tail = math.log((1 - shares[2]) / (1 - shares[3])) / 100
    assert math.exp(tail) == pytest.approx(1 + tail / 0.95, rel=1e-6)


def test_lindleys_recursion_finds_the_same_quantile() -> None:
    due = poisson(0.7, 300_000.0, seed=5)
    found = waits(due, np.ones(len(due)))
    assert np.quantile(found, 0.99) == pytest.approx(wait_quantile(0.99, 0.7, 1.0), rel=0.05)
    assert waits(np.array([0.0, 1.0, 1.5]), np.array([2.0, 3.0, 1.0])).tolist() == [0.0, 1.0, 3.5]


def test_a_queue_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a load of 1\.20"):
        mean_wait(1.2, 1.0)

"""The search against a simulated server whose capacity is known, and what is read out of records."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.capacity import search
from loadtest.fleet import BenchError
from loadtest.load import lost
from loadtest.queueing import wait_quantile, waits
from loadtest.rush import Rush, judge
from loadtest.sender import GIVEN_UP, UNANSWERED, Record, poisson

SERVICE, BUDGET = 1e-3, 8e-3


def theoretical() -> float:
    """The rate at which M/D/1's p99, service included, is the budget."""
    low, high = 1.0, 999.0
    while high - low > 0.01:
        middle = (low + high) / 2
        kept = wait_quantile(0.99, middle, SERVICE) + SERVICE <= BUDGET
        low, high = (middle, high) if kept else (low, middle)
    return low


def test_the_search_finds_a_simulated_servers_capacity() -> None:
    seeds = iter(range(10_000))

    def meets(rate: float) -> bool:
        due = poisson(rate, 30.0, next(seeds))
        latency = waits(due, np.full(len(due), SERVICE)) + SERVICE
        return bool(np.percentile(latency, 99) <= BUDGET)

    found = search(meets, 300.0, 1100.0, precision=0.02)
    assert found == pytest.approx(theoretical(), rel=0.05)


def test_a_rate_that_fails_once_by_chance_is_tried_again() -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= 500 and len(tried) % 2 == 0

    assert search(meets, 300.0, 1100.0, precision=0.02, confirm=1) == pytest.approx(500, rel=0.06)


def test_a_rate_that_is_not_confirmed_is_lowered() -> None:
    bisecting = [True]

    def meets(rate: float) -> bool:
        if bisecting[0]:
            bisecting[0] = rate < 780  # what a lucky run would find
            return True
        return rate < 700

    assert 600 < search(meets, 300.0, 800.0, precision=0.03) < 700


def test_a_server_that_keeps_no_budget_is_an_error() -> None:
    with pytest.raises(BenchError, match="no rate meets the budget"):
        search(lambda rate: False, 100.0, 200.0)


def test_a_rush_is_judged() -> None:
    rush = Rush(capacity=100.0, times=3.0, seconds=8.0)
    due = rush.due()
    during = (due >= 3) & (due < 11)
    assert during.sum() == pytest.approx(2400, rel=0.1)
    assert (due < 3).sum() == pytest.approx(210, rel=0.25)
    n = len(due)
    # A third is answered in 20 ms, a third refused in 1 ms, the rest answered too late or given up.
    third = np.arange(n) % 3
    status = np.where(during & (third == 1), 429, 200)
    latency = np.where(during, np.where(third == 2, 0.09, 0.02), 0.002)
    latency[status == 429] = 0.001
    gone = during & (third == 2) & (np.arange(n) % 2 == 0)
    status[gone], latency[gone] = GIVEN_UP, np.nan
    # For two more seconds it is slow.
    latency[(due >= 11) & (due < 13)] = 0.03
    zero = np.zeros(n)
    record = Record(status, latency, zero, np.zeros(n, np.int64), 0.0, zero)
    found = judge(record, due, rush, deadline=0.05, budget_ms=10.0)
    assert found["offered_rps"] == pytest.approx(300, rel=0.1)
    assert found["goodput_ratio"] == pytest.approx(1.0, rel=0.1)
    assert found["shed_rate"] == pytest.approx(1 / 3, abs=0.01)
    assert found["p99_ms"] == pytest.approx(90)
    assert found["late_share_of_accepted"] == pytest.approx(1 / 3, abs=0.02)
    assert found["other"] == {str(GIVEN_UP): int(gone[due >= 4][: -(due >= 11).sum()].sum())}
    assert found["recovery_s"] == pytest.approx(2.0, abs=0.1)
    # What was given up was never sent, and so not lost.
    never = np.isin(status, (GIVEN_UP, UNANSWERED))
    record.late[never] = np.nan
    assert not lost(record).any()


def test_a_server_that_never_recovers_is_told() -> None:
    rush = Rush(capacity=100.0, times=3.0, seconds=4.0)
    due = rush.due()
    n = len(due)
    record = Record(np.full(n, 200), np.full(n, 0.2), np.zeros(n), np.zeros(n, np.int64), 0.0, np.zeros(n))
    found = judge(record, due, rush, deadline=0.05, budget_ms=10.0)
    assert found["recovery_s"] is None
    assert found["goodput_ratio"] == 0

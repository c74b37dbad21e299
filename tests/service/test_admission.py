"""Who is admitted, by a clock that stands still unless it is set."""

import asyncio

import pytest

from service.admission import Admission


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("service.admission.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def busy(admission, seconds, times=500):
    for _ in range(times):
        admission.answered(seconds)


def test_the_mean_is_what_requests_take(clock):
    admission = Admission(permits=1)
    busy(admission, 0.01)
    assert admission.seconds == pytest.approx(0.01)


def test_a_request_is_admitted_while_half_of_its_time_is_left_for_it(clock):
    """Takes 1.2 x 10 ms by the mean; of 50 ms half may be used, so it may have waited for 13 ms."""
    admission = Admission(permits=1)
    busy(admission, 0.01)
    assert admission.in_time(clock.now - 0.0129, 0.05)
    assert not admission.in_time(clock.now - 0.0131, 0.05)


def test_a_service_that_is_idle_knows_when_a_request_came_and_a_busy_one_knows_the_worst(clock):
    async def use():
        admission = Admission(permits=1)
        clock.now += 1.0
        assert admission.arrival() == clock.now  # it was waiting for it
        await asyncio.sleep(0)
        began = clock.now
        clock.now += 0.02
        admission.answered(0.02)
        assert admission.arrival() == began  # it may have come just after the loop came round before
        clock.now += 0.03
        assert admission.arrival() == began  # read in the same round
        admission.answered(0.03)
        await asyncio.sleep(0)
        assert admission.arrival() == began + 0.02
        await asyncio.sleep(0)
        clock.now += 1.0
        assert admission.arrival() == clock.now

    asyncio.run(use())


def test_permits_bound_what_waits(clock):
    admission = Admission(permits=2)
    admission.waiting = 1
    assert admission.in_time(clock.now, 1.0)
    admission.waiting = 2
    assert not admission.in_time(clock.now, 1.0)


def test_after_one_long_pause_requests_are_admitted_again(clock):
    """Nothing but refusals follows a mean that is too long, so they must bring it down."""
    admission = Admission(permits=1)
    admission.answered(60.0)
    refused = 0
    while not admission.in_time(clock.now, 0.25):
        admission.refused()
        refused += 1
        assert refused < 1000
    assert refused > 0

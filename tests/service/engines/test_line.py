"""Jobs that stand in line, with answers that say who was answered together."""

import asyncio
import threading
import time
import weakref

import numpy as np
import pytest

from service.engines._line import Job, Line
from service.engines._patience import Patience


class Desk:
    """Answers each job with its own number, and writes down who came together."""

    def __init__(self):
        self.together = []
        self.busy = threading.Event()
        self.busy.set()

    def answer(self, jobs):
        self.busy.wait()
        self.together.append([int(job.inputs["n"][0]) for job in jobs])
        for job in jobs:
            if job.inputs["n"][0] < 0:
                raise RuntimeError("below 0")
            job.logit = job.inputs["n"].astype(np.float32)

    @staticmethod
    def fits(together, job):
        return len(together.jobs) < 4 and job.tables == together.jobs[0].tables


def job(number, tables=None):
    return Job({"n": np.array([number])}, "pack", [], tables, 1, 1)


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def line(desk):
    line = Line(desk.answer, desk.fits, Patience(0.0), mixed=True)
    yield line
    line.close()


def waiting(line, count):
    """Until so many stand in line behind the first."""
    while line._queue.qsize() < count:
        time.sleep(0.001)


def test_each_has_its_own_answer(line):
    assert [line.ask(job(at)).tolist() for at in range(5)] == [[0], [1], [2], [3], [4]]


def test_those_that_wait_are_answered_together_as_many_as_fit(line, desk):
    async def ask():
        desk.busy.clear()
        first = line.submit(job(0))
        waiting(line, 0)
        await asyncio.sleep(0.02)
        rest = [line.submit(job(at)) for at in range(1, 7)]
        waiting(line, 6)
        desk.busy.set()
        return [int(each[0]) for each in await asyncio.gather(first, *rest)]

    assert asyncio.run(ask()) == list(range(7))
    assert desk.together == [[0], [1, 2, 3, 4], [5, 6]]
    assert (line.launches, line.jobs) == (3, 7)


def test_those_that_do_not_fit_keep_their_places(line, desk):
    async def ask():
        desk.busy.clear()
        asked = [line.submit(job(0))]
        await asyncio.sleep(0.02)
        other = {"t": 1}
        asked += [line.submit(job(at, None if at % 2 else other)) for at in range(1, 6)]
        waiting(line, 5)
        desk.busy.set()
        await asyncio.gather(*asked)

    asyncio.run(ask())
    assert desk.together == [[0], [1, 3, 5], [2, 4]]


def test_nobody_overtakes_a_task(line, desk):
    async def ask():
        desk.busy.clear()
        asked = [line.submit(job(0))]
        await asyncio.sleep(0.02)
        asked.append(line.submit(job(1)))
        line.later(lambda: desk.together.append("task"))
        asked.append(line.submit(job(2)))
        waiting(line, 3)
        desk.busy.set()
        await asyncio.gather(*asked)

    asyncio.run(ask())
    assert desk.together == [[0], [1], "task", [2]]


def test_one_after_another_where_nothing_is_mixed(desk):
    line = Line(desk.answer, desk.fits, Patience(1e-3), mixed=False)

    async def ask():
        await asyncio.gather(*(line.submit(job(at)) for at in range(3)))

    asyncio.run(ask())
    line.close()
    assert desk.together == [[0], [1], [2]]


def test_those_that_are_expected_are_waited_for(desk):
    patience = Patience(1.0)
    line = Line(desk.answer, desk.fits, patience, mixed=True)
    patience.expected = 2.0
    threads = [threading.Thread(target=line.ask, args=(job(at),)) for at in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    line.close()
    assert desk.together == [[0, 1]]


def test_who_is_expected_and_does_not_come_is_waited_for_so_long(desk):
    patience = Patience(0.05)
    line = Line(desk.answer, desk.fits, patience, mixed=True)
    patience.expected = 3.0
    began = time.perf_counter()
    line.ask(job(1))
    assert 0.05 <= time.perf_counter() - began < 0.5
    line.close()


def test_an_error_is_raised_where_it_was_asked_and_the_line_goes_on(line):
    with pytest.raises(RuntimeError, match="below 0"):
        line.ask(job(-1))
    assert line.ask(job(3)).tolist() == [3]

    async def ask():
        with pytest.raises(RuntimeError, match="below 0"):
            await line.submit(job(-1))

    asyncio.run(ask())


def test_a_task_gives_its_result_or_its_error(line):
    assert line.do(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        line.do(lambda: 1 / 0)


def test_who_does_not_wait_any_more_is_not_answered(line, desk):
    async def ask():
        desk.busy.clear()
        gone = line.submit(job(1))
        gone.cancel()
        desk.busy.set()
        return await line.submit(job(2))

    assert asyncio.run(ask()).tolist() == [2]


def test_a_closed_line_takes_nothing(line):
    line.close()
    with pytest.raises(ValueError, match="released"):
        line.ask(job(1))
    line.later(lambda: None)
    line.close()


def test_a_loop_that_ended_is_left_alone(line, desk):
    desk.busy.clear()

    async def ask():
        line.submit(job(1))

    asyncio.run(ask())
    desk.busy.set()
    assert line.ask(job(2)).tolist() == [2]


def test_a_loop_that_is_closed_does_not_end_the_thread(line, desk):
    async def give_up():
        desk.busy.clear()
        line.submit(job(1))

    asyncio.run(give_up())
    desk.busy.set()
    assert line.ask(job(2)).tolist() == [2]


def test_an_error_keeps_nothing_of_what_failed(line):
    kept = []

    def fails():
        held = Desk()
        kept.append(weakref.ref(held))
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory") as error:
        line.do(fails)
    assert kept[0]() is None
    assert error.value.__traceback__ is not None


def test_nothing_is_taken_after_the_end(line):
    line.close()
    with pytest.raises(ValueError, match="closed"):
        line.ask(job(1))
    line.later(lambda: None)
    line.close()

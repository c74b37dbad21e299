"""The sender against a server that delays, cuts connections and refuses: what it records is what was done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.cores import divide
from loadtest.load import Load, lost, summary
from loadtest.sender import GIVEN_UP, LOST, UNANSWERED, Plan, Record, Senders, poisson, request
from tests.loadtest.answering import answering


def send(folder: Path, port: int, paths: list[str], due: list[float], **options: object) -> Record:
    requests = [request("POST", path, b"{}") for path in paths]
    moments, which = np.array(due), np.arange(len(due))
    senders = int(options.pop("senders", 1))  # type: ignore[call-overload]
    plan = Plan(port, int(options.pop("connections", 4)), requests, moments, which, **options)  # type: ignore[arg-type, call-overload]
    return Senders(plan, folder / "sender", senders).wait()


def test_statuses_and_delays_are_recorded(tmp_path: Path) -> None:
    with answering() as server:
        paths = ["/wait/0", "/wait/60", "/status/429", "/cut", "/status/500", "/close", "/wait/0"]
        due = [0.0, 0.02, 0.04, 0.06, 0.3, 0.4, 0.5]
        record = send(tmp_path, server.port, paths, due, spin=True, grace=2.0)
    assert record.status.tolist() == [200, 200, 429, LOST, 500, 200, 200]
    assert record.statuses() == {0: 1, 200: 4, 429: 1, 500: 1}
    assert 0.055 < record.latency[1] < 0.2
    assert np.isnan(record.latency[3])
    assert record.latency[0] < 0.05
    assert lost(record).sum() == 1
    assert (record.worker[:3] == 77).all()
    # Connections that were cut, or that the server closed, were opened again.
    assert server.connections == 6


def test_a_request_counts_from_the_moment_due_though_no_connection_was_free(tmp_path: Path) -> None:
    with answering() as server:
        record = send(tmp_path, server.port, ["/wait/100"] * 3, [0.0, 0.0, 0.0], connections=1)
    assert record.latency.round(1).tolist() == [0.1, 0.2, 0.3]
    assert record.late[2] > 0.15
    # It was not the sender that was late.
    assert (record.lag < 0.05).all()


def test_a_request_whose_deadline_passed_is_not_sent_and_others_say_what_is_left(tmp_path: Path) -> None:
    with answering() as server:
        paths = ["/wait/100", "/wait/0", "/wait/0"]
        record = send(
            tmp_path, server.port, paths, [0.0, 0.01, 0.06], connections=1, deadline=0.08, identify=False
        )
    assert record.status.tolist() == [200, GIVEN_UP, 200]
    told = [
        float(line.partition(":")[2])
        for head in server.heads
        for line in head.split("\r\n")
        if line.startswith("X-Deadline-Ms")
    ]
    assert len(server.heads) == len(told) == 2
    assert 70 < told[0] <= 80
    assert 0 < told[1] < 45  # it waited from 60 to 100 ms


def test_what_no_answer_came_to_is_lost_and_what_was_never_sent_is_not(tmp_path: Path) -> None:
    with answering() as server:
        record = send(tmp_path, server.port, ["/wait/2000"] * 2, [0.0, 0.0], connections=1, grace=0.2)
    assert record.status.tolist() == [UNANSWERED, UNANSWERED]
    assert lost(record).sum() == 1


def test_several_senders_carry_out_one_plan(tmp_path: Path) -> None:
    with answering() as server:
        paths = [f"/status/{200 + at}" for at in range(9)]
        due = [0.01 * at for at in range(9)]
        record = send(tmp_path, server.port, paths, due, senders=2, keep=True)
    assert record.status.tolist() == [200 + at for at in range(9)]
    assert all(record.answers)
    assert (record.latency < 0.5).all()


def test_poisson_arrivals_have_their_rate_and_are_independent() -> None:
    due = poisson(1000.0, 50.0, seed=3)
    assert len(due) == pytest.approx(50_000, rel=0.02)
    gaps = np.diff(due)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential distribution
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.02)
    assert (poisson(1000.0, 50.0, seed=3) == due).all()
    assert due[0] >= 0
    assert due[-1] < 50


def test_a_summary_tells_refusals_from_errors(tmp_path: Path) -> None:
    with answering() as server:
        paths = ["/wait/0", "/status/429", "/status/503", "/status/500", "/cut"]
        load = Load(server.port, [request("POST", path, b"{}") for path in paths], divide(1), tmp_path)
        due = np.linspace(0, 0.5, 200)
        record = load.send(due)
    found = summary(record, 400.0, np.ones(len(due), bool))
    assert found.requests == 200
    statuses = record.statuses()
    assert found.answered == statuses[200] / 200
    assert found.shed == (statuses[429] + statuses[503]) / 200
    assert found.errors == pytest.approx((statuses[500] + statuses[0]) / 200)
    assert 0 < found.p50_ms <= found.p99_ms < 500

"""What the storm's record says: which answers are wrong, and which failures have a cause."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from loadtest.bench_swap import Size, _judge
from loadtest.sender import LOST, UNANSWERED, Plan, Record


def test_every_answer_and_every_failure_is_judged() -> None:
    def answer(pack: str, probability: float) -> bytes:
        return json.dumps({"pack": pack, "probabilities": [probability]}).encode()

    answers = [
        answer("good", 0.5),
        answer("good", 0.500002),
        answer("good", 0.51),
        answer("good", float("nan")),
        answer("bad", 0.5),
    ]
    status = np.array([200] * 5 + [LOST, LOST, UNANSWERED, 503])
    n = len(status)
    worker = np.array([1] * 5 + [7, 1, 7, 1])
    latency = np.full(n, 0.001)
    latency[5:8] = np.nan
    latency[2] = 9.0
    due = np.arange(n, dtype=np.float64) + 2.0
    # The third request is due in an outage, the others from the fourth on after it.
    storm: Any = SimpleNamespace(
        killed=7, back_s=1.0, began=3.5, half=3.5, ended=99.0, outages=[(3.9, 4.5)], converge_s=[0.1, 0.2],
        promotes=9, rollbacks=2, bad=1, cuts=0,
    )  # fmt: skip
    material: Any = SimpleNamespace(expected={(0, "good"): np.array([0.5])})
    plan = Plan(1, 1, [b""], due, np.zeros(n, np.int64), keep=True)
    blank = np.zeros(n)
    record = Record(status, latency, blank, worker, 0.0, blank, [*answers, b"", b"", b"", b""])
    found = _judge(Size(), material, plan, record, storm)
    assert found["answers_checked"] == 5
    assert found["answers_wrong"] == 3
    assert found["requests_lost_with_killed_worker"] == 1
    assert found["requests_failed"] == 3
    assert found["storm_p99_ms"] == 1.0
    assert found["converge_s_max"] == 0.2

"""The naive service answers what ours does, or a comparison of their speeds would say nothing."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from loadtest import naive, wire
from loadtest.closed import Closed
from loadtest.cores import divide
from loadtest.stage import Size, stage

TINY = Size(domains=2, items=200, users=100, rows=600, dim=4, hidden=(8, 4))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_it_answers_what_the_service_answers(tmp_path: Path) -> None:
    cores = divide(1)
    with stage(TINY, tmp_path) as made:
        domain = made.bundle.manifest.domains[0]
        asked = made.asked(30, 3, one_domain=True)
        assert {each.domain for each in asked} == {domain}
        assert naive.rows(made.bundle, asked[0]).shape == (30, 15)
        with (
            made.serve(cores.server) as port,
            made.serve_naive(cores.server, tmp_path, domain) as plain,
            closing(Closed(port)) as ours,
            closing(Closed(plain)) as theirs,
        ):
            for each in asked:
                status, body = ours.ask(each.http)
                assert status == 200
                expected = json.loads(body)["probabilities"]
                status, body = theirs.ask(naive.http(made.bundle, each))
                assert status == 200
                assert json.loads(body)["probabilities"] == pytest.approx(expected, abs=1e-5)
            status, body = ours.ask(wire.http(made.bundle, asked[0]))
            assert status == 200
            expected = json.loads(ours.ask(asked[0].http)[1])["probabilities"]
            np.testing.assert_allclose(wire.probabilities(body), expected, atol=1e-5)
            rps, seconds = ours.run([each.http for each in asked], 0.1)
            assert rps == pytest.approx(1 / seconds.mean(), rel=0.3)
            # An answer that takes longer than there is time for counts, too.
            assert len(ours.run([asked[0].http], 0.0)[1]) == 1

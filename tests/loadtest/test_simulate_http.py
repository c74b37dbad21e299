"""Worlds over HTTP, small ones: what users ask and click, and one from its bundle to the guard's decision."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtest import simulate_experiments
from loadtest.contest import Contest
from loadtest.exported import export
from loadtest.shoppers import Shoppers
from loadtest.simulate_http import WORLDS, Size, markdown, simulate
from training.data.sources import synthetic

_DATA = {"users": 600, "items": 60, "domains": {"ads": 500, "shop": 5000}}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    recipe = {"name": "tiny", "data": {"name": "synthetic", **_DATA}}
    made = export(tmp_path_factory.mktemp("tiny"), {}, recipe)
    source = synthetic.open(synthetic.Options.model_validate(_DATA))
    return Contest(made, source, Shoppers(source, "shop", 10, 3))


def test_users_ask_for_different_items_and_click_as_the_simulator_has_it(contest: Contest) -> None:
    shoppers = contest.shoppers
    seen = shoppers.visits(np.random.default_rng(0), np.arange(600))
    assert all(len({*row}) == 10 for row in seen.item.tolist())
    at = 17
    expected = contest.source.probability(
        "shop", np.repeat(seen.user[at], 10), seen.item[at], np.repeat(seen.hour[at], 10),
        np.repeat(seen.device[at], 10),
    )  # fmt: skip
    assert seen.probability[at] == pytest.approx(expected)
    frame = contest.source.interactions().frame
    assert seen.probability.mean() == pytest.approx(frame["probability"].mean(), abs=0.1)


def test_noise_makes_a_pack_worse_by_as_much_as_it_should(contest: Contest) -> None:
    worse = contest.worse(0.04)
    up, down = contest.lift(contest.own, worse), contest.lift(worse, contest.own)
    assert up.value == pytest.approx(0.04, abs=0.015)
    assert (1 + up.value) * (1 + down.value) == pytest.approx(1)
    assert up.rates == down.rates[::-1]
    assert contest.lift(contest.own, contest.own).value == 0
    own, loud = contest.pack(), contest.pack(shift=0.5)
    assert loud.calibration[1] - own.calibration[1] == pytest.approx(0.5)
    assert np.array_equal(loud.golden.logit, own.golden.logit)


def test_a_small_world_ends_right(tmp_path: Path) -> None:
    size = Size(units=600, rows=6000)
    report = simulate(size, tmp_path, Console(file=io.StringIO()), ["loud"])
    assert (report["worlds"], report["right"]) == (1, 1)
    (world,) = report["each"]
    assert (world["decision"], world["new_has"], world["recorded"]) == ("stopped", 0, True)
    assert "calibration is below" in world["why"]
    assert world["requests"] == 600 * world["days"]
    assert 0 < world["clicks"] < 5 * world["requests"]
    assert sum(world["steps"][0]["units"].values()) == 600
    assert not any(tmp_path.iterdir())  # of a world that ends right nothing stays
    assert "| stopped | 0 % |" in markdown(report)


def test_figures_that_are_not_asked_for_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = {"worlds": len(WORLDS), "right": 2}
    monkeypatch.setattr("loadtest.simulate_http.simulate", lambda *_: worlds)
    before = {"aa": {"runs": 7}, "canary": {"worlds": 100, "right": 99}}
    (tmp_path / "report.json").write_text(json.dumps(before))
    parts = [simulate_experiments.OVER_HTTP]
    found = simulate_experiments.simulate(
        simulate_experiments.Size(), tmp_path, Console(file=io.StringIO()), parts
    )
    assert found == {"aa": {"runs": 7}, "canary": {"worlds": 100, "right": 99, "http": worlds}}
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert simulate_experiments.failed(found, parts)
    assert not simulate_experiments.failed(found, [simulate_experiments.IN_PROCESS])

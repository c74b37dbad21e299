"""Reports of small logs, from files to pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from service.__main__ import app
from service.contract import cli
from service.contract.exposure import CLICK, EVENT, EXPOSURE, read
from service.experiments.outcomes import outcomes
from service.experiments.plan import Plan, ReportError, planned, read_before
from service.experiments.report import report, write
from service.experiments.sections import WORDS

EVEN = Plan({"old": 1, "new": 1}, lift=0.1)
_DAY = 86400.0
_START = 1_767_225_600.0
"""2026-01-01."""


def exposure(request: str, unit: str, arm: str | None, ids: list[str], /, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": request,
        "time": _START,
        "unit": unit,
        "experiment": "trial",
        "arm": arm,
        "domain": "books",
        "bundle": "bundle",
        "pack": "0" * 16,
        "ids": ids,
        "scores": [0.1] * len(ids),
        **changes,
    }


def save(folder: Path, exposures: list[dict[str, Any]], clicks: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(exposures, EXPOSURE), folder / "exposures.parquet")
    with pa.ipc.new_stream(folder / "clicks.arrow", CLICK) as out:
        out.write_table(pa.Table.from_pylist(clicks, CLICK))
    return folder


def traffic(
    folder: Path,
    units: int = 3000,
    lift: float = 0.3,
    weights: tuple[float, float] = (0.5, 0.5),
    days: int = 4,
) -> tuple[Path, dict[str, float]]:
    """A log of users who differ, and what they did before. The effect is in `books` alone."""
    random = np.random.default_rng(3)
    rate = random.beta(3, 17, units)
    arm = random.choice(["old", "new"], units, p=weights)
    exposures, clicks = [], []
    for at in range(units):
        for visit in range(1 + random.poisson(2)):
            domain = ("books", "films")[random.integers(2)]
            p = rate[at] * (1 + lift * (arm[at] == "new" and domain == "books"))
            request = f"r{at}-{visit}"
            when = _START + _DAY * random.uniform(0, days)
            ids = [str(item) for item in random.choice(50, 5, replace=False)]
            changes = {"time": when, "domain": domain, "scores": [float(p)] * 5}
            exposures.append(exposure(request, f"u{at}", arm[at], ids, **changes))
            clicks += [
                {"request_id": request, "item": item, "time": when + 5} for item in ids if random.random() < p
            ]
    before = {f"u{at}": float(random.binomial(60, rate[at])) for at in range(units)}
    return save(folder, exposures, clicks), before


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    return traffic(tmp_path_factory.mktemp("log"))


def test_clicks_find_their_impressions_once(tmp_path: Path) -> None:
    exposures = [
        exposure("r1", "u1", "old", ["a", "b", "a"]),
        exposure("r1", "u1", "old", ["a"]),  # logged again
        exposure("r2", "u2", "new", ["b"], time=_START + _DAY, domain="films"),
        exposure("r3", "u3", "old", ["a"]),
        exposure("r4", "u3", "new", ["a"]),  # the same unit under the other arm
        exposure("r5", "u5", "third", ["a"]),
        exposure("r6", "u6", None, ["a"], experiment=None),
        exposure("r7", "u7", "old", ["a"], scores=[]),
        exposure("r8", "u8", "new", []),
    ]
    clicks = [
        {"request_id": request, "item": item, "time": _START}
        for request, item in (("r1", "a"), ("r1", "a"), ("r2", "b"), ("r2", "a"), ("r6", "a"), ("x", "a"))
    ]
    found = outcomes(read(save(tmp_path, exposures, clicks)), "trial", ["old", "new"])
    assert found.names == ("u1", "u2", "u8")
    assert found.arm.tolist() == [0, 1, 1]
    assert found.impressions.tolist() == [3, 1, 0]
    assert found.clicks.tolist() == [1, 1, 0]
    assert found.clicked.tolist() == [True, False, False, True]
    assert [each.tolist() for each in found.totals(1)] == [[1], [1]]
    assert [name for name, _, _ in found.by_day()] == ["2026-01-01", "2026-01-02"]
    assert found.faults == {
        "requests_incomplete": 1,
        "requests_of_other_arms": 1,
        "requests_logged_again": 1,
        "units_in_two_arms": 1,
        "clicks_of_no_impression_here": 3,
        "items_not_shown": 0,
    }


def test_only_what_was_shown_counts_where_events_say_so(tmp_path: Path) -> None:
    exposures = [
        exposure("r1", "u1", "old", ["a", "b", "c"], scores=[0.1, 0.2, 0.3]),
        exposure("r2", "u2", "new", ["a", "b"]),  # nothing of it was seen
        exposure("r3", "u3", "new", ["a", "b"], domain="films"),  # where nobody tells
        exposure("r4", "u4", "old", ["a", "b", "a"]),
    ]
    folder = save(tmp_path, exposures, [{"request_id": "r4", "item": "b", "time": _START}])
    told = [
        {"request_id": request, "item": item, "time": _START, "kind": "shown"}
        for request, item in (("r1", "a"), ("r1", "c"), ("r1", "c"), ("r4", "a"), ("x", "a"))
    ]
    parquet.write_table(pa.Table.from_pylist(told, EVENT), folder / "shown.parquet")
    found = outcomes(read(folder), "trial", ["old", "new"])
    assert found.impressions.tolist() == [2, 0, 2, 2]
    assert found.clicks.tolist() == [0, 0, 0, 1]
    assert found.probability[:2].tolist() == pytest.approx([0.1, 0.3])
    assert found.clicked.tolist() == [False, False, False, False, False, True]
    assert found.faults["items_not_shown"] == 4
    assert [each.tolist() for each in found.totals(1)] == [[0], [2]]


def test_a_report_says_what_was_simulated(log: tuple[Path, dict[str, float]]) -> None:
    folder, before = log
    found = report(folder, "trial", EVEN, before)
    assert found.keys() == {
        "experiment", "plan", "log", "sample_ratio", "verdict",
        "control", "arms", "comparisons", "calibration",
    }  # fmt: skip
    assert found["control"] == "old"
    new = found["comparisons"]["new"]
    assert new.keys() == {
        "ctr", "guardrails", "domains", "heterogeneity", "days", "novelty", "cuped",
    }  # fmt: skip
    effect, books, films = new["ctr"], new["domains"]["books"], new["domains"]["films"]
    assert effect["difference"] == pytest.approx(
        found["arms"]["new"]["ctr"]["value"] - found["arms"]["old"]["ctr"]["value"]
    )
    assert effect["lift_always_valid"][0] < effect["lift_fixed"][0] < 0.15 < effect["lift_fixed"][1]
    assert books["fixed"][0] > 0 > films["fixed"][0]
    assert new["heterogeneity"]["p"] < 0.01
    assert new["cuped"]["se"] < effect["se"]
    assert new["cuped"]["units_known"] == 3000
    assert len(new["days"]) == found["log"]["days"] == 4
    assert new["days"][-1]["cumulative"] == effect
    assert all(each["cumulative"]["se"] <= each["daily"]["se"] for each in new["days"])
    for arm in ("old", "new"):  # scores are the true probabilities
        calibration = found["calibration"][arm]
        assert calibration["predicted"] == pytest.approx(calibration["observed"], rel=0.05)
        assert calibration["ece"] < 0.02
    assert found["verdict"][0].startswith("new raises the click rate against old: +")
    assert "not the same in all domains" in " ".join(found["verdict"])


def test_an_arm_that_loses_units_stops_the_report(tmp_path: Path) -> None:
    folder, _ = traffic(tmp_path / "log", units=1500, weights=(0.6, 0.4))
    found = report(folder, "trial", EVEN)
    assert found["sample_ratio"]["mismatch"]
    assert not found.keys() & {"arms", "comparisons", "calibration"}
    assert found["verdict"][0].startswith("STOP")
    write(found, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "STOP" in page
    assert "Click rate" not in page
    assert "do not believe any difference" in page
    assert "<dt>unit</dt>" in page
    assert "<dt>ECE</dt>" not in page
    assert not report(folder, "trial", Plan({"old": 6, "new": 4}))["sample_ratio"]["mismatch"]


def test_pages_need_nothing_else(log: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = report(log[0], "trial", EVEN, log[1])
    write(found, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == found
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|src=\"(?!data:)", page)
    assert page.count("<img") == 3
    text = (tmp_path / "report.md").read_text()
    for said in found["verdict"]:
        assert said in text
    for part in (
        "Sample ratio",
        "Click rate by arm",
        "new against old",
        "new by domain",
        "new by day",
        "CUPED",
    ):
        assert part in text
        assert part in page
    assert page.index(found["verdict"][0].partition(". ")[0].replace("'", "&#x27;")) < page.index(
        "Sample ratio"
    )
    assert "2026-01-01 to 2026-01-04, 4 days; 3,000 units" in text
    assert "new compared with the control, old" in page
    for word in WORDS:
        assert f"<dt>{word}</dt>" in page
    assert '<meta name="viewport"' in page  # or a phone shows it as small as a table is wide


def test_no_effect_and_no_variance_are_said(tmp_path: Path) -> None:
    same, _ = traffic(tmp_path / "same", units=1200, lift=0.0, days=1)
    found = report(same, "trial", Plan({"old": 1, "new": 1}, lift=0.9))
    assert "no difference is shown" in found["verdict"][0]
    assert "is ruled out: it can end" in found["verdict"][1]
    assert found["comparisons"]["new"]["novelty"] is None
    exposures = [exposure(f"r{at}", f"u{at}", ("old", "new")[at % 2], ["a"]) for at in range(6)]
    silent = report(save(tmp_path / "silent", exposures, []), "trial", EVEN)
    assert silent["comparisons"]["new"]["ctr"]["se"] is None
    assert "too few clicks" in silent["verdict"][0]
    write(silent, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == silent


def test_nothing_is_said_of_a_domain_with_few_clicks(tmp_path: Path) -> None:
    folder, _ = traffic(tmp_path / "log", units=1500)
    log = read(folder)
    exposures = log.exposures.to_pylist()
    for row in exposures[::100]:
        row["domain"] = "maps"
    save(folder, exposures, log.clicks.to_pylist())
    new = report(folder, "trial", EVEN)["comparisons"]["new"]
    assert new["domains"].keys() == {"books", "films", "maps"}
    assert new["domains"]["maps"]["impressions"] == 5 * len(exposures[::100])
    assert new["domains"]["maps"]["lift"] is None
    assert new["heterogeneity"]["df"] == 1


def test_several_treatments_share_alpha(tmp_path: Path) -> None:
    folder, _ = traffic(tmp_path / "log", units=400)
    rows = read(folder).exposures.to_pylist()
    for row in rows:
        if int(row["unit"][1:]) % 3 == 0:
            row["arm"] = "third"
    save(folder, rows, read(folder).clicks.to_pylist())
    two = report(folder, "trial", Plan({"old": 1, "new": 1}))["comparisons"]["new"]["ctr"]
    three = report(folder, "trial", Plan({"old": 1, "new": 1, "third": 1}))["comparisons"]["new"]["ctr"]
    assert three["difference"] == two["difference"]
    wide, narrow = (each["fixed"][1] - each["difference"] for each in (three, two))
    assert wide / narrow == pytest.approx(2.2414 / 1.95996, rel=1e-4)  # z of 0.9875 and of 0.975


def test_a_plan_comes_from_a_document_or_from_words(tmp_path: Path) -> None:
    arms = {
        "new": {"weight": 1, "fallback": "general"},
        "off": {"weight": 0, "domain": "x"},
        "old": {"weight": 3},
    }
    experiment = {"name": "trial", "unit": "user", "slice": [0, 1], "arms": arms}
    document = tmp_path / "experiments.json"
    document.write_text(json.dumps({"version": 1, "layers": {"ranking": {"experiments": [experiment]}}}))
    found = planned("trial", document, [], 0.02, 0.05)
    assert [*found.arms.items()] == [("old", 3), ("new", 1)]
    assert found == planned("trial", None, ["old=3", "new=1"], 0.02, 0.05)
    wrong: list[tuple[str, Path | None, list[str], str]] = [
        ("other", document, [], "has no other; it has trial"),
        ("trial", tmp_path / "none", [], "cannot be read"),
        ("trial", None, [], "arms come from"),
        ("trial", document, ["old=1"], "arms come from"),
        ("trial", None, ["old"], "not NAME=WEIGHT"),
    ]
    for name, path, words, reason in wrong:
        with pytest.raises(ReportError, match=reason):
            planned(name, path, words, 0.02, 0.05)


def test_there_must_be_something_to_report(tmp_path: Path) -> None:
    folder = save(tmp_path, [exposure("r", "u", "old", ["a"])], [])
    for plan, reason in ((EVEN, "nothing of trial under new"), (Plan({"old": 1}), "two arms or more")):
        with pytest.raises(ReportError, match=reason):
            report(folder, "trial", plan)
    parquet.write_table(pa.table({"unit": [1, None], "value": [2, 3]}), tmp_path / "before.parquet")
    assert read_before(tmp_path / "before.parquet") == {"1": 2.0}
    with pytest.raises(ReportError, match="no columns unit and value"):
        read_before(folder / "exposures.parquet")


def test_the_command(
    log: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tmp_path / "before.parquet"
    parquet.write_table(pa.table({"unit": [*log[1]], "value": [*log[1].values()]}), before)

    def call(*more: str) -> tuple[object, str, str]:
        arguments = ["report", str(log[0]), "--experiment", "trial", "--out", str(tmp_path / "out"), *more]
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: app(arguments))
        return (ended.value.code, *capsys.readouterr())

    code, out, _ = call("--arm", "old=1", "--arm", "new=1", "--before", str(before), "--lift", "0.1")
    assert code == 0
    assert out == (tmp_path / "out" / "report.md").read_text() + "\n"
    assert "CUPED" in out
    code, out, _ = call("--arm", "old=3", "--arm", "new=1", "--json")
    assert code == 1
    assert json.loads(out)["sample_ratio"]["mismatch"]
    code, _, err = call("--arm", "old=1")
    assert (code, err) == (2, "error: an experiment has two arms or more, each with a weight above 0\n")

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from loadtest.bench_add_domain import Case, Scores, bench, case_for, show
from loadtest.left_out import LeftOut, Options
from service.contract.errors import RunError
from training import newcomer
from training.data.prepare import prepare

DOMAINS = {"big": 2000, "late": 1500, "mid": 800}
SMALL = {"domains": DOMAINS, "users": 100, "items": 60}


def left_out(keeps: str, domain: str = "late") -> LeftOut:
    options = {"source": "synthetic", "options": SMALL, "domain": domain, "keeps": keeps}
    return LeftOut(Options.model_validate(options))


def test_the_three_parts_share_rows_and_splits() -> None:
    everything = left_out("all").interactions().frame
    others, own = (left_out(keeps).interactions().frame for keeps in ("others", "domain"))
    assert others.equals(everything.filter(pl.col("domain") != "late"))
    assert own.equals(everything.filter(pl.col("domain") == "late"))
    assert set(others["domain"]) == {"big", "mid"}
    file = left_out("others").file()
    assert file.equals(own.drop("domain", "split", "probability"))
    places = newcomer.split(file.height, file["time"].to_numpy().astype(float), 0)
    for name, place in zip(("train", "valid", "test"), places, strict=True):
        assert (own["split"] == name).arg_true().to_list() == place.tolist()
        assert others.filter(pl.col("split") == name).height == pytest.approx(
            others.height * (0.8 if name == "train" else 0.1), abs=20
        )


def test_what_the_others_are_fitted_on_has_nothing_of_the_domain_but_items(tmp_path: Path) -> None:
    options = {"source": "synthetic", "options": SMALL, "domain": "late", "keeps": "others"}
    prepared = prepare("loadtest.left_out", options, tmp_path)
    assert prepared.domains == ("big", "mid")
    assert prepared.items().height == 60
    assert "late: split as `export add-domain` does, left out" in prepared.about.protocol
    with pytest.raises(RunError, match="no domain 'lat'; it has big, late, mid"):
        left_out("all", "lat").file()


def test_a_difference_in_auc_is_that_of_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 2000)
    good, bad = (Scores(weight * label + rng.normal(size=2000), label) for weight in (2.0, 0.5))
    gap = good.above(bad)
    assert gap["auc"] == pytest.approx(good.quality()["auc"] - bad.quality()["auc"])
    assert 0 < gap["low"] < gap["auc"] < gap["high"]
    assert good.above(good) == {"auc": 0.0, "low": 0.0, "high": 0.0}


def test_from_rows_on_disk_to_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.bench_add_domain.SCRATCH_LR", (2e-3,))
    report = bench(Case("synthetic", SMALL, "late"), tmp_path / "out", tmp_path / "data", rounds=1)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["rows"] == {"train": 1200, "valid": 150, "test": 150}
    (seconds,), (command,) = report["seconds_to_first_answer"], report["seconds_of_command"]
    assert 0 < seconds < command + 5
    assert report["quality"].keys() == {"general", "added", "scratch", "joint"}
    assert report["quality"]["added"]["auc"] == pytest.approx(report["auc_of_added_by_torch"], abs=1e-3)
    console = Console(record=True, width=140, file=io.StringIO())
    show(report, console)
    assert "add-domain, over HTTP" in console.export_text()


def test_a_data_set_without_a_case_is_refused() -> None:
    assert case_for("kuairand", "tab-0").domain == "tab-0"
    assert case_for("kuairand", None).domain == "tab-4"
    with pytest.raises(RunError, match="no case for 'douban'; there are synthetic, kuairand"):
        case_for("douban", None)

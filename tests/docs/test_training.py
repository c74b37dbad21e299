"""What the page on training at size says was measured is what the reports beside it say."""

from __future__ import annotations

import json
from pathlib import Path

from loadtest import bench_training
from loadtest.bench_stream import markdown

PAGE = Path("docs/training.md")
REPORT = Path("docs/figures/bench-stream.json")
OTHERS = Path("docs/figures/bench-training.json")


def test_the_table_of_streamed_rows_is_its_reports() -> None:
    assert markdown(json.loads(REPORT.read_text())) in PAGE.read_text()


def test_what_the_text_says_of_streamed_rows_is_in_the_report() -> None:
    page = " ".join(PAGE.read_text().split())
    report = json.loads(REPORT.read_text())
    most = max(report["runs"], key=lambda found: found["rows"])
    least = min(report["runs"], key=lambda found: found["rows"])
    assert most["rows"] == 100_000_000
    assert report["race"]["2"]["ratio"] >= 0.8
    more = most["stream"]["peak_mb"] - least["stream"]["peak_mb"]
    assert more < 200
    for text in (
        f"{most['stream']['peak_mb']:,.0f} MB at the most, of which {most['stream']['before_mb']:,.0f} MB",
        f"reaches {report['race']['2']['ratio']:.2f} of its speed in memory",
    ):
        assert text in page, text


def test_the_table_of_other_libraries_is_its_reports() -> None:
    report = json.loads(OTHERS.read_text())
    assert [*report] == [bench_training.model_of(recipe) for recipe in bench_training.recipes("synthetic")]
    assert bench_training.markdown(report) in PAGE.read_text()


def test_what_the_text_says_of_other_libraries_is_in_the_report() -> None:
    page = " ".join(PAGE.read_text().split())
    report = json.loads(OTHERS.read_text())
    ratios = {
        name: [found[f"ratio_to_{rival}"] for rival in bench_training.RIVALS if rival not in found["missing"]]
        for name, found in report.items()
    }
    twice = "deepfm", "shared_bottom", "ple"
    assert all(min(ratios[name]) >= 2 for name in twice)
    assert all(len(found) >= 2 and min(found) >= 1 for found in ratios.values())
    for found in report.values():
        assert (found["batch"], found["threads"], found["domains"], len(found["fields"])) == (2048, 1, 4, 9)
    least, most = min(map(min, ratios.values())), max(map(max, ratios.values()))
    of_twice = min(min(ratios[name]) for name in twice)
    (rounds,), (batches,) = ({found[key] for found in report.values()} for key in ("rounds", "batches"))
    for text in (
        f"median of {rounds} interleaved rounds of {batches} batches",
        f"{least:.1f} to {most:.1f} times as fast",
        f"at least {of_twice:.1f} times with DeepFM, shared bottom and PLE",
        f"{min(ratios['mmoe']):.1f} times with MMoE",
    ):
        assert text in page, text

"""What the pages say was measured is what the reports beside them say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from loadtest import bench, bench_csamp, bench_domains, bench_models, bench_swap
from training.figures import beside, differences, newcomers, pairs, table

DOCS = Path("docs")
PAGES = {"results-kuairand-models": "models", "results-uni-ctr": "uni-ctr", "results-csamp": "csamp"}
"""Of a comparison's report, where it is not that of PLATE."""


@pytest.mark.parametrize(
    "report", sorted((DOCS / "figures").glob("results-*.json")), ids=lambda path: path.stem
)
def test_a_table_is_its_reports(report: Path) -> None:
    page = (DOCS / f"{PAGES.get(report.stem, 'plate')}.md").read_text()
    found = json.loads(report.read_text())
    if "subjects" not in found:
        assert table(found) in page
    for part in (found[name] for name in found.get("subjects", ())):
        assert differences(part) in page
        assert "unseen" not in part or newcomers(part) in page


def test_the_page_of_every_model_is_its_reports() -> None:
    page = (DOCS / "results.md").read_text()
    report = json.loads((DOCS / "figures" / "results.json").read_text())
    published = json.loads((DOCS / "figures" / "published-douban.json").read_text())
    every = pl.read_parquet(DOCS / "figures" / "results.parquet")
    for name in report["subjects"]:
        part = report[name]
        assert table(part) in page
        assert all(pairs(part, question) in page for question in part["pairs"])
        macro = every.filter(data=name, domain="macro").group_by("model").agg(pl.col("auc").mean(), pl.len())
        assert set(macro["model"]) == part["rows"].keys()
        for model, auc, seeds in macro.rows():
            assert auc == pytest.approx(part["rows"][model]["macro"]["auc_mean"])
            assert seeds >= 3
    assert beside(report["douban"], published["rows"]) in page


@pytest.mark.parametrize(
    ("module", "page"),
    [
        (bench_swap, "domains"),
        (bench_domains, "domains"),
        (bench, "load-testing"),
        (bench_models, "models"),
        (bench_csamp, "csamp"),
    ],
)
def test_a_benchmarks_table_is_its_reports(module: ModuleType, page: str) -> None:
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    report = json.loads((DOCS / "figures" / f"{name}.json").read_text())
    assert module.markdown(report) in (DOCS / f"{page}.md").read_text()


def test_models_differ_as_the_report_says() -> None:
    page = (DOCS / "models.md").read_text()
    report = json.loads((DOCS / "figures" / "results-kuairand-models.json").read_text())
    for name, found in report["differences_from"]["Mix"].items():
        gap = found["macro"]
        cells = name, f"{gap['difference']:+.4f}", f"{gap['low']:+.4f} to {gap['high']:+.4f}"
        assert f"| {' | '.join(cells)} |\n" in page


def test_what_the_text_says_of_load_is_in_the_reports() -> None:
    page = " ".join((DOCS / "load-testing.md").read_text().split())
    alone, whole, scaling = (
        json.loads((DOCS / "figures" / f"{name}.json").read_text())
        for name in ("bench", "loadtest", "loadtest-scaling")
    )
    md1, overload, hostile, sigterm = (whole[part] for part in ("md1", "overload", "hostile", "sigterm"))
    binary, engine = alone["http"]["binary"]["500"]["rps_busy"], alone["engine"]["500"]["rps"]
    ratios = ", ".join(f"{hostile[kind]['p99_ratio']:.2f}x" for kind in ("slow", "hang_up", "idle"))
    for text in (
        f"reaches {alone['naive']['500']['ratio_to_flat']:.2f} of the flat graph's",
        f"takes {1e6 / binary:.0f} us of the core, and the engine alone {1e6 / engine:.0f} us",
        f"keeps {binary / engine:.0%}".replace("%", " %"),
        f"{whole['capacity_rps']:,.0f} requests/s, {whole['share_of_saturated']:.2f} of what",
        f"{md1['p99_ms']:.1f} ms; M/D/1 says {md1['predicted_p99_ms']:.1f} ms ({md1['ratio']:.2f}x)",
        (
            f"goodput {overload['goodput_ratio']:.2f} of the capacity, p99 {overload['p99_ms']:.0f} ms, "
            f"{100 * overload['shed_rate']:.0f} % refused, over after {overload['recovery_s']:.1f} s"
        ),
        f"{ratios} of calm",
        (
            f"{sigterm['lost'] or 'no'} request lost in the drain of {sigterm['drain_seconds']:g} s; "
            f"{sigterm['cut_after_drain']} cut off after it"
        ),
        *(f"{found['saturated_rps']:,.0f}" for found in scaling["scaling"].values()),
        *(f"{found['capacity_rps']:,.0f}" for found in scaling["scaling"].values()),
    ):
        assert text in page, text


def test_pictures_and_pages_that_are_linked_exist() -> None:
    for page in (*DOCS.glob("*.md"), Path("README.md"), Path("CONTRIBUTING.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if target.startswith("reference/"):  # made with the site, whose test looks at them
                continue
            assert (page.parent / target).exists(), (page, target)

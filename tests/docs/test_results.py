"""What the pages say was measured is what the reports beside them say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from loadtest import bench_domains, bench_swap
from training.figures import table

DOCS = Path("docs")


@pytest.mark.parametrize(
    "report", sorted((DOCS / "figures").glob("results-*.json")), ids=lambda path: path.stem
)
def test_a_table_is_its_reports(report: Path) -> None:
    assert table(json.loads(report.read_text())) in (DOCS / "plate.md").read_text()


@pytest.mark.parametrize("bench", [bench_swap, bench_domains], ids=lambda module: module.__name__)
def test_a_benchmarks_table_is_its_reports(bench: ModuleType) -> None:
    name = bench.__name__.rpartition(".")[2].replace("_", "-")
    report = json.loads((DOCS / "figures" / f"{name}.json").read_text())
    assert bench.markdown(report) in (DOCS / "domains.md").read_text()


def test_pictures_and_pages_that_are_linked_exist() -> None:
    for page in (*DOCS.glob("*.md"), Path("README.md"), Path("CONTRIBUTING.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)

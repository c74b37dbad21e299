"""What the pages say was measured is what the reports beside them say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from loadtest import bench, bench_domains, bench_swap
from training.figures import table

DOCS = Path("docs")


@pytest.mark.parametrize(
    "report", sorted((DOCS / "figures").glob("results-*.json")), ids=lambda path: path.stem
)
def test_a_table_is_its_reports(report: Path) -> None:
    assert table(json.loads(report.read_text())) in (DOCS / "plate.md").read_text()


@pytest.mark.parametrize(
    ("module", "page"), [(bench_swap, "domains"), (bench_domains, "domains"), (bench, "load-testing")]
)
def test_a_benchmarks_table_is_its_reports(module: ModuleType, page: str) -> None:
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    report = json.loads((DOCS / "figures" / f"{name}.json").read_text())
    assert module.markdown(report) in (DOCS / f"{page}.md").read_text()


def test_pictures_and_pages_that_are_linked_exist() -> None:
    for page in (*DOCS.glob("*.md"), Path("README.md"), Path("CONTRIBUTING.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)

"""What the page on GPUs says was measured is what the reports beside it say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.bench_gpu import float16_markdown, markdown
from service.engines.ort_cuda import Options

PAGE = Path("docs/gpu.md")
REPORT = Path("docs/figures/bench-gpu.json")


def test_what_float16_costs_is_what_the_bundles_said() -> None:
    found = json.loads(Path("docs/figures/float16.json").read_text())
    assert float16_markdown(found) in PAGE.read_text()
    assert {"douban", "kuairand", "synthetic"} <= {each["source"] for each in found}
    assert max(one["auc_loss"] for each in found for one in each["domains"]) <= 2e-4


def test_every_option_is_on_the_page() -> None:
    page = PAGE.read_text()
    assert not [name for name in Options.model_fields if f"`{name}`" not in page]


@pytest.mark.skipif(not REPORT.exists(), reason="no report of a GPU is kept yet")
def test_the_tables_are_the_reports() -> None:
    assert markdown(json.loads(REPORT.read_text())) in PAGE.read_text()

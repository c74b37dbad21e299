"""The pages that are written to be followed lead where they say, done exactly as they stand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from loadtest.server import free_port
from service.contract.bundle import Bundle
from tests.docs.blocks import blocks
from tests.docs.test_code_blocks import PREPARED
from tests.docs.walk import walk

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a checkout in which `make` was run; its recipe has fewer rows and epochs."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    recipe = tmp_path / "training" / "recipes" / "plate_synthetic.yaml"
    recipe.parent.mkdir(parents=True)
    small = yaml.safe_load((ROOT / recipe.relative_to(tmp_path)).read_text())
    small["data"]["domains"] = {"feed": 6000, "shop": 3000, "ads": 2000, "new": 1500}
    small["joint"]["epochs"] = small["tuning"]["epochs"] = 2
    recipe.write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    return tmp_path


def test_the_quick_start_ends_with_the_old_pack_back(checkout: Path) -> None:
    page = DOCS / "quick-start.md"
    begin = page.read_text().splitlines().index("## 2. Train and export")  # what is before is make demo
    walked = walk(page, free_port(), begin, checkout / "out")
    assert len(walked) == len([block for block in blocks(page) if block.line > begin])
    lines = (checkout / "out").read_text().splitlines()
    ready, shop, unknown, first, second, again = (json.loads(line) for line in lines if line.startswith("{"))
    assert ready["ready"]
    assert ready["domains"].keys() == {"ads", "feed", "new", "shop"}
    assert len(shop["probabilities"]) == 3
    assert unknown["type"] == "urn:mdctr:problem:unknown-domain"
    assert first["pack"] != second["pack"]
    assert first["probabilities"] != second["probabilities"]
    assert (again["pack"], again["probabilities"]) == (first["pack"], first["probabilities"])


def test_a_backbone_of_ones_own_is_trained_and_exported(checkout: Path) -> None:
    walk(DOCS / "add-backbone.md")
    [path] = (checkout / "runs" / "bundles").iterdir()
    bundle = Bundle.open(path)
    assert bundle.manifest.model["backbone"] == {"name": "ours.gated", "hidden": 16}
    [listed] = [block for block in blocks(DOCS / "formats.md") if block.text.startswith("manifest.json ")]
    names = {word.split("/")[0] for line in listed.text.splitlines() for word in line[:28].split()}
    assert {file.name for file in path.iterdir()} == names


def test_a_source_of_ones_own_is_prepared_and_trained(checkout: Path) -> None:
    PREPARED["add-source"](checkout)
    walk(DOCS / "add-source.md")
    metrics = json.loads((checkout / "runs" / "clicks" / "metrics.json").read_text())
    assert metrics["domains"].keys() == {"books", "films"}

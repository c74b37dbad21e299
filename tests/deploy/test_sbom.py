"""The list of what a service's image carries: these packages, no others, in the versions that CI tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CARRIED = [
    "annotated-doc",
    "annotated-types",
    "anyio",
    "click",
    "fastapi",
    "flatbuffers",
    "h11",
    "hiredis",
    "httptools",
    "idna",
    "markdown-it-py",
    "mdurl",
    "msgspec",
    "numpy",
    "onnxruntime",
    "opentelemetry-api",
    "packaging",
    "prometheus-client",
    "protobuf",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "pygments",
    "python-dotenv",
    "pyyaml",
    "redis",
    "rich",
    "safetensors",
    "shellingham",
    "starlette",
    "structlog",
    "typer",
    "typing-extensions",
    "typing-inspection",
    "uvicorn",
    "uvloop",
    "watchfiles",
    "websockets",
    "xxhash",
]
"""By hand: what is new in an image is seen where this changes."""


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    out = tmp_path_factory.mktemp("sbom") / "sbom.json"
    subprocess.run(
        [sys.executable, "deploy/sbom.py", "--out", out], cwd=ROOT, check=True, capture_output=True
    )
    return json.loads(out.read_text())


def test_it_names_what_the_service_needs_in_the_versions_of_the_constraints(document):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    found = {canonicalize_name(each["name"]): each["version"] for each in document["components"]}
    assert found == {name: pinned[name] for name in map(canonicalize_name, CARRIED)}


def test_it_says_where_each_comes_from_and_who_needs_it(document):
    assert document["metadata"]["component"]["name"] == "mdctr"
    assert all(each["purl"].startswith("pkg:pypi/") for each in document["components"])
    refs = {each["bom-ref"] for each in document["components"]}
    needed = {ref for each in document["dependencies"] for ref in each.get("dependsOn", ())}
    assert needed <= refs
    # protobuf's own metadata names none.
    assert {each["name"] for each in document["components"] if not each.get("licenses")} <= {"protobuf"}


def test_it_is_the_same_for_the_same_packages(document, tmp_path):
    out = tmp_path / "again.json"
    subprocess.run(
        [sys.executable, "deploy/sbom.py", "--out", out], cwd=ROOT, check=True, capture_output=True
    )
    assert json.loads(out.read_text()) == document

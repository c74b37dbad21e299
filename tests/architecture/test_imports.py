"""Which way the imports point, and what a service does not carry."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_of_pyproject_hold():
    lint = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert lint is not None
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


def loaded(module):
    """Top-level packages that a fresh interpreter has after importing a module."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["service.app", "service.__main__"])
def test_the_service_runs_without_what_makes_models(module):
    there = loaded(module)
    assert {"service", "fastapi"} <= there
    assert not there & {"torch", "onnx", "onnxscript", "transformers", "polars", "pyarrow"}
    assert not there & {"training", "export", "loadtest"}


@pytest.mark.parametrize(
    "module", ["service.contract.schema", "service.contract.bundle", "service.contract.plugins"]
)
def test_the_contract_needs_no_server(module):
    assert not loaded(module) & {
        "fastapi",
        "starlette",
        "uvicorn",
        "redis",
        "onnxruntime",
        "structlog",
        "typer",
    }


def test_a_service_imports_only_the_engine_and_the_store_it_is_told():
    assert not loaded("service.app") & {"onnxruntime", "redis", "tensorrt"}

"""Locust against a real service, in a process of its own, because it replaces parts of the library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.cores import divide
from loadtest.stage import stage
from tests.loadtest.test_naive import TINY


def test_every_request_is_seen_and_budgets_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "loose.yaml").write_text("all: {p99_ms: 5000, errors: 0, shed: 0.5}\nlate_starts: 1")
    (tmp_path / "strict.yaml").write_text("all: {p50_ms: 0.001}\nlate_starts: 1")
    with stage(TINY, tmp_path) as made, made.serve(divide(1).server) as port:
        for name, code in (("loose", 0), ("strict", 1)):
            command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
            command += ["--host", f"http://127.0.0.1:{port}", "--bundle", str(made.bundle.path)]
            command += ["-u", "4", "-r", "4", "-t", "2s", "--rate", "10", "--click-rate", "0.5", "--json"]
            command += ["--budgets", str(tmp_path / f"{name}.yaml"), "--reports", str(tmp_path / name)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == code, done.stdout + done.stderr
            assert "ERROR" not in done.stderr
            report = json.loads((tmp_path / name / "budgets.json").read_text())
            assert report["kept"] == (code == 0)
            assert 30 < report["requests"] < 150

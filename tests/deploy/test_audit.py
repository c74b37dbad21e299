"""Findings are answered or fail, and no database is no good news."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "rich", "skip_reason": "not found"}
BAD = {
    "name": "redis",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": "d"}],
}


def audit(tmp_path, *packages, answers="", more=()):
    (tmp_path / "report.json").write_text(json.dumps({"dependencies": packages}))
    (tmp_path / "audit.toml").write_text(answers)
    command = [sys.executable, "deploy/audit.py", "--report", str(tmp_path / "report.json")]
    command += ["--answers", str(tmp_path / "audit.toml"), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def answer(name="CVE-1", package="redis", reason="nothing here reads it", until="2999-01-01"):
    return f'[[answer]]\nid = "{name}"\npackage = "{package}"\nreason = "{reason}"\nuntil = {until}\n'


def test_nothing_found_is_0(tmp_path):
    assert audit(tmp_path, CLEAN) == (0, "1 packages, 0 findings, 0 not answered\n")


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ("", 1),
        (answer(), 0),
        (answer("PYSEC-1"), 0),
        (answer("CVE-2"), 1),
        (answer(package="numpy"), 1),
        (answer(reason=" "), 1),
        (answer(until="2020-01-01"), 1),
    ],
)
def test_a_finding_needs_an_answer_that_is_for_it_and_not_over(tmp_path, answers, code):
    found, out = audit(tmp_path, CLEAN, BAD, answers=answers)
    assert found == code
    assert "redis 1.0: CVE-1, PYSEC-1; fixed in 1.1" in out
    assert ("NOT ANSWERED" in out) == bool(code)


def test_an_answer_to_nothing_is_told(tmp_path):
    code, out = audit(tmp_path, CLEAN, answers=answer())
    assert code == 0
    assert "its answer can go: CVE-1" in out


def test_packages_that_no_database_knows_are_not_good_news(tmp_path):
    assert audit(tmp_path, SKIPPED)[0] == 3
    assert audit(tmp_path, SKIPPED, more=["--where-reachable"])[0] == 0
    assert "not audited" in audit(tmp_path, SKIPPED, more=["--where-reachable"])[1]
    code, out = audit(tmp_path, SKIPPED, CLEAN)
    assert code == 0
    assert "not audited: rich" in out
    assert audit(tmp_path, SKIPPED, BAD, more=["--where-reachable"])[0] == 1


def test_the_answers_that_are_kept_can_be_read():
    found = tomllib.loads((ROOT / "deploy" / "audit.toml").read_text()).get("answer", [])
    assert all({"id", "package", "reason", "until"} == each.keys() for each in found)
    lines = (ROOT / "deploy" / "audit.toml").read_text().splitlines()
    example = [line.removeprefix("# ") for line in lines]
    assert tomllib.loads("\n".join(example[example.index("[[answer]]") :]))["answer"][0]["until"]

"""Known vulnerabilities of what `constraints.txt` installs, and what was answered to each (`audit.toml`).

    python deploy/audit.py [--where-reachable] [--report FILE]

Exit code 0: each finding is answered. 1: one is not. 3: no database of advisories could be asked, or none
knew the packages; with `--where-reachable` that is 0, and said all the same. pip-audit alone would say "no
known vulnerabilities" of packages that a mirror without advisories does not know.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATABASES = "pypi", "osv"
UNANSWERED, UNREACHABLE = 1, 3
_PATIENCE = 300
"""Seconds that a database may take."""


@dataclass(frozen=True)
class Finding:
    """A vulnerability of a package."""

    package: str
    version: str
    names: frozenset[str]
    """Its id, and what other databases call it."""
    fixed: str

    def __str__(self) -> str:
        fixed = f"; fixed in {self.fixed}" if self.fixed else "; not fixed"
        return f"{self.package} {self.version}: {', '.join(sorted(self.names))}{fixed}"


def main() -> int:
    """The exit code."""
    options = argparse.ArgumentParser(description="Known vulnerabilities of what constraints.txt installs.")
    options.add_argument("--report", type=Path, help="what pip-audit wrote as JSON, instead of asking anew")
    options.add_argument("--answers", type=Path, default=ROOT / "deploy" / "audit.toml")
    options.add_argument("--where-reachable", action="store_true", help="no database is no failure")
    given = options.parse_args()
    report = json.loads(given.report.read_text()) if given.report else ask()
    skipped = [each["name"] for each in report["dependencies"] if "skip_reason" in each] if report else []
    if report is None or len(skipped) == len(report["dependencies"]):
        sys.stdout.write("not audited: no database of advisories answers here for these packages\n")
        return 0 if given.where_reachable else UNREACHABLE
    for name in skipped:
        sys.stdout.write(f"not audited: {name} is unknown to the database\n")
    answers = tomllib.loads(given.answers.read_text()).get("answer", [])
    found = findings(report)
    open_ = unanswered(found, answers, datetime.now(UTC).date())
    for finding in found:
        sys.stdout.write(f"{'NOT ANSWERED' if finding in open_ else 'answered'}: {finding}\n")
    for name in stale(found, answers):
        sys.stdout.write(f"no longer found, its answer can go: {name}\n")
    sys.stdout.write(f"{len(report['dependencies']) - len(skipped)} packages, {len(found)} findings, ")
    sys.stdout.write(f"{len(open_)} not answered\n")
    return UNANSWERED if open_ else 0


def ask() -> dict[str, Any] | None:
    """What the first database says that knows any of the packages; None where there is none."""
    for database in DATABASES:
        command = [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps"]
        command += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command += ["--vulnerability-service", database]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_PATIENCE
            )
            report: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, json.JSONDecodeError):
            sys.stdout.write(f"{database} cannot be reached\n")
            continue
        if any("skip_reason" not in each for each in report["dependencies"]):
            return report
        sys.stdout.write(f"{database} knows none of the packages here\n")
    return None


def findings(report: Mapping[str, Any]) -> list[Finding]:
    """What a report of pip-audit has."""
    return [
        Finding(
            each["name"],
            each["version"],
            frozenset({found["id"], *found.get("aliases", ())}),
            ", ".join(found.get("fix_versions", ())),
        )
        for each in report["dependencies"]
        for found in each.get("vulns", ())
    ]


def unanswered(found: Iterable[Finding], answers: Iterable[Mapping[str, Any]], today: date) -> list[Finding]:
    """Findings without an answer that is for their package, has a reason, and is not over."""
    good = {
        (answer["package"], answer["id"])
        for answer in answers
        if answer["reason"].strip() and answer["until"] >= today
    }
    return [each for each in found if not any((each.package, name) in good for name in each.names)]


def stale(found: Iterable[Finding], answers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of answers to nothing that was found."""
    there = {(each.package, name) for each in found for name in each.names}
    return [answer["id"] for answer in answers if (answer["package"], answer["id"]) not in there]


if __name__ == "__main__":
    sys.exit(main())

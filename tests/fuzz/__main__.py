"""`python -m tests.fuzz --minutes 60`: damaged input for every reader, in turns, and a table of it."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import structlog

from tests.fuzz import answering, corpus, following, listening, parsers
from tests.fuzz.fuzzing import Fuzzing
from tests.service import bundles

_TURN = 20.0
"""Seconds that a target has before it is the next one's turn; a short run has a turn each."""


def main() -> int:
    """Exit code 1 where something went wrong."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--minutes", type=float, default=1.0, help="altogether")
    options.add_argument(
        "--only", default="", help="a pattern: targets whose name has it; others stay in the report"
    )
    options.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of what is drawn")
    options.add_argument(
        "--keep", action="store_true", help="keep inputs that reach more in tests/fuzz/corpus"
    )
    options.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder of the report")
    given = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = bundles.make_bundle(folder / "bundle")
        found = [
            target
            for module in (parsers, answering, following, listening)
            for target in stack.enter_context(module.targets(bundle))
            if re.search(given.only, target.name)
        ]
        rng = Random(given.seed)
        runs = [Fuzzing(each, Random(rng.random()), corpus.load(each.name)) for each in found]
        for _ in _turns(runs, given.minutes * 60):
            report = _write(given.out, runs, whole=not given.only)
            if given.keep:
                for run in runs:
                    corpus.save(run.target.name, [*run.corpus, *run.kept])
    sys.stdout.write(table(report))
    for run in runs:
        for what in run.found:
            sys.stdout.write(f"\n{run.target.name}: {what}")
    return int(any(run.found for run in runs))


def _turns(runs: list[Fuzzing], seconds: float) -> Iterator[None]:
    """Give each its turn until the time is over; a pause after each round."""
    end = time.monotonic() + seconds
    turn = min(_TURN, seconds / len(runs))
    for run in runs:
        run.start()
    while time.monotonic() < end:
        for run in runs:
            until = min(end, time.monotonic() + turn)
            run.run(lambda: time.monotonic() >= until)  # noqa: B023 - it is over before the next
        yield


def _write(folder: Path, runs: list[Fuzzing], *, whole: bool) -> dict[str, Any]:
    """Write the report, over what it says of other targets unless it is whole."""
    path = folder / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = {} if whole or not path.exists() else json.loads(path.read_text())["targets"]
    targets = before | {run.target.name: run.figures for run in runs}
    report = {
        "minutes": round(sum(each["seconds"] for each in targets.values()) / 60, 1),
        "python": platform.python_version(),
        "targets": targets,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    for run in runs:
        run.save(folder / "found")
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "| target | inputs | crashes | 500s | hangs | lines reached |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, run in report["targets"].items():
        cells = f"{run['inputs']:,}", run["crashes"], run["faults"], run["hangs"], run["lines"] or "-"
        lines.append(f"| {' | '.join(map(str, (name, *cells)))} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())

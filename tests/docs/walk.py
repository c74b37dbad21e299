"""`python -m tests.docs.walk PAGE`: does what a page says, block after block, in one shell, with a stopwatch.

A block with a title is written to the file of that name; every other one of `sh` is run as it stands. The
first that fails ends the walk with its exit code. `--port` takes another port than 8080, `--from` begins at a
later line.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.docs.blocks import Block, blocks

_DONE = "walked"


def script(steps: list[Block]) -> str:
    """One bash script of all blocks; before and after each it says which on file descriptor 3."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    for step in steps:
        lines += [f"echo 'begin {step}' >&3", step.text, f"echo 'end {step}' >&3"]
    return "\n".join([*lines, f"echo {_DONE} >&3"])


def walk(page: Path, port: int = 8080, first: int = 0, out: Path | None = None) -> list[tuple[Block, float]]:
    """Run a page's blocks from the current folder; returns them with the seconds that each took.

    Args:
        page: what to do.
        port: of the service, where the page says 8080.
        first: the line at which to begin.
        out: a file for what the blocks print; by default it goes to stderr.

    Raises:
        SystemExit: a block failed; with its name and exit code.
    """
    steps = []
    for block in blocks(page):
        if block.title:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{block.text}\n")
        elif block.language == "sh" and block.line >= first:
            steps.append(block)
    text = script(steps).replace(":8080", f":{port}")
    begun = {}
    seconds = {}
    printed = "1>&2" if out is None else f"1> {shlex.quote(str(out))}"
    command = ["bash", "-c", f"export MDCTR_PORT={port}\nexec 3>&1 {printed}\n{text}"]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            what, _, name = line.strip().partition(" ")
            if what == "begin":
                begun[name], last = time.monotonic(), name
            elif what == "end":
                seconds[name] = time.monotonic() - begun[name]
            elif what == _DONE:
                last = ""
                break
    status = process.returncode
    if last or status:
        raise SystemExit(f"{last}: exit code {status}")
    return [(step, seconds[str(step)]) for step in steps]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs.walk", description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="LINE")
    given = parser.parse_args()
    found = walk(given.page, given.port, given.first)
    for step, took in found:
        sys.stdout.write(f"{took:8.1f} s  {step}  {step.text.splitlines()[0]}\n")
    sys.stdout.write(f"{sum(took for _, took in found):8.1f} s\n")


if __name__ == "__main__":
    main()

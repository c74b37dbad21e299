"""`Rival`: another library in a process of its own, with an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import loadtest
from service.contract.errors import MdctrError

_NOWHERE = "http://127.0.0.1:9"
"""No proxy: DeepCTR-Torch asks the package index for its newest version whenever it is imported."""


class RivalError(MdctrError):
    """Another library's process did not start, or ended; the text says why."""


class Rival:
    """Another library in a process of its own, which trains for an epoch when it is told to.

    Raises:
        RivalError: it did not start.
    """

    def __init__(self, name: str, python: Path, task: Path, threads: int) -> None:
        if not python.exists():
            raise RivalError(f"there is no {python}; `make bench-training` makes it")
        self.name, self.log = name, task.with_name(f"{name}.log")
        answers, pipe = os.pipe()
        self.answers = os.fdopen(answers)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", f"loadtest.rivals.{name}", str(task), str(pipe)],
                cwd=Path(loadtest.__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "https_proxy": _NOWHERE},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[pipe],
                text=True,
            )
        os.close(pipe)
        try:
            self.versions: dict[str, str] = self._answer()
        except RivalError:
            self.close()
            raise

    def seconds(self) -> float:
        """Have it train for an epoch; how long that took by its own clock."""
        if self.process.stdin is None:
            raise RivalError(f"{self.name} has no input")
        with suppress(BrokenPipeError):  # it has ended, and the answer says why
            self.process.stdin.write("round\n")
            self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.communicate()
        self.answers.close()

    def peak_mb(self) -> float | None:
        """The most that it has had in memory."""
        return peak_mb(self.process.pid)

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RivalError(f"{self.name} ended: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def peak_mb(process: int) -> float | None:
    """The most MB that a process has had in memory; None where Linux does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)

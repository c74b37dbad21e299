"""Training in a process of its own that is killed while it runs, as a machine would go away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from training import fit
from training.checkpoint import Run
from tests.conftest import train

folder, data, saved, run, changes = sys.argv[1:]
fit.SAVE_EVERY = fit._AT_WORK = 0
original, left = Run.save_state, int(saved)

def dies(self, state):
    global left
    original(self, state)
    left -= self.folder.name == run
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

Run.save_state = dies
train(Path(folder), Path(data), **json.loads(changes))
"""


def train_and_kill(
    folder: Path, data: Path, saved: int, changes: Mapping[str, Any], *, run: str | None = None
) -> None:
    """Train as `conftest.train` does, and kill it.

    Args:
        folder: of the run.
        data: of prepared data.
        saved: after so many savings of a state; there is one a step and one an epoch.
        changes: what differs from the tiny recipe.
        run: the name of the folder whose savings count; by default the run's own.
    """
    arguments = [str(folder), str(data), str(saved), run or folder.name, json.dumps(dict(changes))]
    done = subprocess.run([sys.executable, "-c", _SCRIPT, *arguments], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()

"""The other end of `loadtest.bench_training`'s pipes: one epoch for every line on stdin."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch


def serve(package: str, epoch: Callable[[], object]) -> None:
    """Say that the library is ready, then time an epoch for every line that comes.

    Answers go into the pipe whose number is the last argument: stdout is the library's own.

    Args:
        package: what it is called on the package index.
        epoch: trains once on all rows.
    """
    with os.fdopen(int(sys.argv[-1]), "w", buffering=1) as out:
        print(json.dumps({"version": version(package), "torch": torch.__version__}), file=out)
        for _ in sys.stdin:
            began = time.perf_counter()
            epoch()
            print(json.dumps({"seconds": time.perf_counter() - began}), file=out)

"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(happened: Callable[[], object], within: float = 10.0) -> None:
    """Return as soon as `happened()` is true; fail if it never is."""
    until = time.monotonic() + within
    while not happened():
        assert time.monotonic() < until, f"not within {within} seconds"
        time.sleep(0.01)

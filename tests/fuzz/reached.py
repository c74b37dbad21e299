"""`Reached`: which lines of the service an input reaches, so that inputs which reach more are kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = str(Path(__file__).parents[2] / "service") + "/"


class Reached:
    """Lines, as (file, number). Tracing is this thread's alone."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.new = False
        """Whether the last input reached a line that none before it had."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Note what the block reaches."""
        self.new = False
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(_ROOT) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        line = frame.f_code.co_filename, frame.f_lineno
        if line not in self.lines:
            self.lines.add(line)
            self.new = True
        return self._line

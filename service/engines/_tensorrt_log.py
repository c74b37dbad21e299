"""`Log`: what TensorRT says of its errors, kept for the message of ours; its calls answer None or False."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Protocol

from service.engines._tensorrt_api import ILogger, Severity, TensorRt

_log = logging.getLogger(__name__)
_MOST = 8
"""Errors that are kept; the first of a failure are its causes."""


class Log(ILogger, Protocol):
    """An `ILogger` that keeps errors."""

    def take(self) -> str:
        """The errors since the last time, in one line; empty if there was none."""
        ...


def open_log(trt: TensorRt) -> Log:
    """A log that derives from TensorRT's class, as TensorRT wants it."""
    worst = int(trt.ILogger.ERROR)
    warning = int(trt.ILogger.WARNING)

    base: Any = trt.ILogger  # of a library without types

    class Kept(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=_MOST)

        def log(self, severity: Severity, msg: str) -> None:
            if int(severity) <= worst:
                self._errors.append(" ".join(msg.split()))
            elif int(severity) == warning:
                _log.warning("TensorRT: %s", msg)

        def take(self) -> str:
            errors = "; ".join(self._errors)
            self._errors.clear()
            return errors

    kept: Log = Kept()
    return kept

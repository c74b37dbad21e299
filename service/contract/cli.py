"""What every command line of the house does alike."""

from __future__ import annotations

import sys
from collections.abc import Callable

from service.contract.errors import MdctrError


def run(app: Callable[[], object]) -> None:
    """Run a command; what goes wrong on purpose is one line on stderr and exit code 2."""
    try:
        app()
    except MdctrError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from error


def result(text: str) -> None:
    """Print a command's result, which alone goes to stdout."""
    sys.stdout.write(f"{text}\n")

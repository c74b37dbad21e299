"""Inputs that reached something new, kept from earlier runs: a file a target, a line of base64 an input."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")
_LARGEST = 4000
"""Bytes of an input that is kept; larger ones mostly are the same again, and again."""
_MOST = 12_000
"""Bytes of a target's file."""


def load(name: str) -> list[bytes]:
    """Those of a target."""
    path = _path(name)
    return [b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(name: str, inputs: Iterable[bytes]) -> None:
    """Replace those of a target, as far as there is room, the smallest first."""
    lines, size = [], 0
    for data in sorted(
        {data for data in inputs if len(data) <= _LARGEST}, key=lambda data: (len(data), data)
    ):
        lines.append(b64encode(data).decode() + "\n")
        size += len(lines[-1])
        if size > _MOST:
            del lines[-1]
            break
    if lines:
        FOLDER.mkdir(exist_ok=True)
        _path(name).write_text("".join(lines))


def slug(name: str) -> str:
    """A target's name as a file's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())


def _path(name: str) -> Path:
    return FOLDER / f"{slug(name)}.txt"

"""The code blocks of a page, as a reader finds them: fenced, with a language, or indented."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r'^```(?P<language>[a-z]+)?(?: title="(?P<title>[^"]+)")?$')


@dataclass(frozen=True)
class Block:
    """One block."""

    page: Path
    line: int
    """Of its first line of code, from 1."""
    language: str
    """Empty if it is indented, or has none."""
    title: str
    """The file that it is to be written to; empty if it is none."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.stem}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page.

    Raises:
        ValueError: a fence is not closed, or says something that nobody reads.
    """
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            found = _FENCE.match(line)
            end = next((i for i in range(at + 1, len(lines)) if lines[i] == "```"), None)
            if found is None or end is None:
                raise ValueError(f"{page}:{at + 1}: {line}")
            text = "\n".join(lines[at + 1 : end])
            yield Block(page, at + 2, found["language"] or "", found["title"] or "", text)
            at = end + 1
        elif line.startswith("    ") and not (at and lines[at - 1].strip()) and not _in_list(lines, at):
            end = next((i for i in range(at, len(lines)) if lines[i].strip() and lines[i][:4].strip()), None)
            yield Block(page, at + 1, "", "", textwrap.dedent("\n".join(lines[at:end])).rstrip())
            at = len(lines) if end is None else end
        else:
            at += 1


def _in_list(lines: list[str], at: int) -> bool:
    """Whether the paragraph before is an item's: then what is indented is its next paragraph."""
    before = [line for line in lines[:at] if line.strip()]
    while before and before[-1].startswith("  "):
        before.pop()
    return bool(before) and re.match(r"([-*]|\d+\.) ", before[-1]) is not None

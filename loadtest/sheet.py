"""`Sheet`: a report's figures as a table, for a page and for a terminal."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Sheet(NamedTuple):
    """Cells as they are read."""

    heads: list[str]
    lines: list[list[str]]
    """Each as many cells as there are heads."""

    def markdown(self) -> str:
        """For a page."""
        rows = [self.heads, ["---"] * len(self.heads), *self.lines]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)

    def show(self, console: Console) -> None:
        """For a terminal."""
        table = Table(*self.heads)
        for cells in self.lines:
            table.add_row(*cells)
        console.print(table)

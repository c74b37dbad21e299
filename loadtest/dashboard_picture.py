"""`draw`: panels with their data as one picture, each where its dashboard has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loadtest.dashboard_panels import Panel
from service.contract.errors import MdctrError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 24
_CELL = 0.72, 0.44
"""Inches of a cell of the grid."""
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31", "#555555")
"""Told apart by the colour-blind."""
_UNITS = {
    "reqps": "requests/s",
    "rowsps": "rows/s",
    "eps": "events/s",
    "percentunit": "%",
    "s": "time",
    "bytes": "bytes",
    "short": "count",
    "none": "",
}
"""What Grafana calls a unit, and what stands at the axis."""
_MOST = 8
"""Series that a legend names."""


class FigureError(MdctrError):
    """The picture cannot be drawn."""


@dataclass(frozen=True)
class Series:
    """A line."""

    name: str
    seconds: npt.NDArray[np.float64]
    """(T,) since the picture's beginning."""
    values: npt.NDArray[np.float64]
    """(T,)."""


@dataclass(frozen=True)
class Drawn:
    """A panel and what is in it."""

    panel: Panel
    series: Sequence[Series]


def draw(drawn: Sequence[Drawn], out: Path) -> None:
    """Write the picture.

    Raises:
        FigureError: matplotlib is not installed.
    """
    try:
        from matplotlib import ticker  # noqa: PLC0415 - only who draws needs it
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise FigureError("the picture needs matplotlib: pip install 'mdctr[report]'") from error
    formats: dict[str, Callable[[], Any]] = {
        "s": lambda: ticker.EngFormatter("s"),
        "bytes": lambda: ticker.EngFormatter("B"),
        "percentunit": lambda: ticker.PercentFormatter(1.0),
    }
    height = max(each.panel.place["y"] + each.panel.place["h"] for each in drawn)
    figure = Figure(figsize=(_COLUMNS * _CELL[0], height * _CELL[1]), layout=None)
    for each in drawn:
        place = each.panel.place
        top = 1 - place["y"] / height
        left, bottom = place["x"] / _COLUMNS, top - place["h"] / height
        if each.panel.kind == "row":
            figure.text(0.012, (top + bottom) / 2, each.panel.title, fontsize=12, weight="bold", va="center")
            continue
        width, high = place["w"] / _COLUMNS, place["h"] / height
        axes = figure.add_axes((left + 0.14 * width, bottom + 0.3 * high, 0.82 * width, 0.56 * high))
        axes.set_title(each.panel.title, fontsize=9, loc="left")
        (_table if each.panel.kind == "table" else _lines)(axes, each)
        if each.panel.unit in formats:
            axes.yaxis.set_major_formatter(formats[each.panel.unit]())
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90, metadata={"Software": None})


def _lines(axes: Axes, drawn: Drawn) -> None:
    panel, series = drawn.panel, sorted(drawn.series, key=lambda each: each.name)
    if not series:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
    if panel.stacked and series:
        moments = np.unique(np.concatenate([each.seconds for each in series]))
        heights = [np.interp(moments, each.seconds, each.values, left=0, right=0) for each in series]
        names = [each.name for each in series]
        axes.stackplot(moments, heights, labels=names, colors=_colours(len(series)), alpha=0.8)
    else:
        for each, colour in zip(series, _colours(len(series)), strict=True):
            axes.plot(each.seconds, each.values, color=colour, linewidth=1.2, label=each.name)
    for line in panel.lines:
        axes.axhline(line, color="#aa0000", linewidth=0.8, linestyle="--")
    axes.set_ylabel(_UNITS[panel.unit], fontsize=7)
    axes.set_xlabel("seconds", fontsize=7, labelpad=1)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, linewidth=0.3)
    axes.margins(x=0)
    if all(line >= 0 for line in panel.lines) and all((each.values >= 0).all() for each in series):
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        axes.legend(handles[:_MOST], labels[:_MOST], fontsize=6.5, ncols=4, frameon=False, **place)


def _table(axes: Axes, drawn: Drawn) -> None:
    axes.set_axis_off()
    rows = "\n".join(fill(each.name, 60) for each in sorted(drawn.series, key=lambda each: each.name))
    axes.text(0, 1, rows or "no data", fontsize=7, family="monospace", va="top", transform=axes.transAxes)


def _colours(count: int) -> list[str]:
    return [_COLOURS[at % len(_COLOURS)] for at in range(count)]

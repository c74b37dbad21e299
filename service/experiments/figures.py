"""Pictures of a report: PNG by name. They need matplotlib, of the `report` extra."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from service.contract.errors import MdctrError

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#999999"
"""Told apart by colour-blind readers too (Okabe and Ito)."""
_MOST_DOMAINS = 40
"""Rows of a picture; the domains with the most impressions."""
CALIBRATION = "calibration"


class FigureError(MdctrError):
    """Pictures cannot be drawn."""


def draw(report: Mapping[str, Any]) -> dict[str, bytes]:
    """PNGs by name; none where the report shows no effect.

    Raises:
        FigureError: matplotlib is not installed.
    """
    if report["sample_ratio"]["mismatch"]:
        return {}
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it
    except ImportError as error:
        raise FigureError("figures need matplotlib: pip install 'mdctr[report]'") from error
    mpl.use("Agg")
    made = {}
    for name, found in report["comparisons"].items():
        made[by_day(name)] = _days(found)
        if sum(each["se"] is not None for each in found["domains"].values()) > 1:
            made[by_domain(name)] = _domains(found)
    if report["calibration"]:
        made[CALIBRATION] = _calibration(report)
    return made


def by_day(treatment: str) -> str:
    """The name of the figure of a treatment's effect over time."""
    return f"{treatment}, by day"


def by_domain(treatment: str) -> str:
    """The name of the figure of a treatment's effect in each domain."""
    return f"{treatment}, by domain"


def _days(found: Mapping[str, Any]) -> bytes:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (daily, cumulative) = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    shown = [each for each in found["days"] if each["cumulative"]["se"] is not None]
    at = range(len(shown))
    alone = [
        (day, each["daily"]) for day, each in zip(at, shown, strict=True) if each["daily"]["se"] is not None
    ]
    reach = [100 * (each["lift_fixed"][1] - each["lift"]) for _, each in alone]
    lifts = [100 * each["lift"] for _, each in alone]
    daily.errorbar([day for day, _ in alone], lifts, yerr=reach, fmt="o", color=_BLUE, capsize=3)
    daily.set_title("each day alone, fixed-horizon interval")
    daily.set_ylabel("change of the click rate, %")
    ends = [[100 * end for end in each["cumulative"]["lift_always_valid"]] for each in shown]
    fixed = [[100 * end for end in each["cumulative"]["lift_fixed"]] for each in shown]
    low, high = ([each[side] for each in ends] for side in (0, 1))
    cumulative.fill_between(at, low, high, color=_ORANGE, alpha=0.25, label="always valid")
    for side in (0, 1):
        cumulative.plot(
            at, [each[side] for each in fixed], "--", color=_GREY, label=None if side else "fixed horizon"
        )
    lifts = [100 * each["cumulative"]["lift"] for each in shown]
    cumulative.plot(at, lifts, "o-", color=_ORANGE, label="change")
    cumulative.set_title("all days so far")
    cumulative.set_ylabel("change of the click rate, %")
    cumulative.legend(loc="best")
    step = max(1, len(shown) // 7)
    for axes in (daily, cumulative):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel("day (UTC)")
        axes.set_xticks([*at][::step], [each["day"][5:] for each in shown][::step], rotation=45)
        axes.grid(alpha=0.3)
    return _png(figure)


def _domains(found: Mapping[str, Any]) -> bytes:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    known = {name: each for name, each in found["domains"].items() if each["se"] is not None}
    names = sorted(known, key=lambda name: -known[name]["impressions"])[:_MOST_DOMAINS]
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(names) + 1.5), layout="constrained")
    for at, name in enumerate(names):
        each = known[name]
        for interval, width, colour, label in (
            ("lift_always_valid", 1, _GREY, "always valid"),
            ("lift_fixed", 3, _BLUE, "fixed horizon"),
        ):
            ends = [100 * end for end in each[interval]]
            axes.plot(ends, [at, at], color=colour, linewidth=width, label=None if at else label)
        axes.plot(100 * each["lift"], at, "o", color=_BLUE)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(100 * found["ctr"]["lift"], color=_ORANGE, linestyle="--", linewidth=1, label="all domains")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("change of the click rate, %")
    axes.set_ylabel("domain")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    axes.grid(alpha=0.3, axis="x")
    return _png(figure)


def _calibration(report: Mapping[str, Any]) -> bytes:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    for marker, (name, found) in zip(cycle("os^Dv<>p"), report["calibration"].items(), strict=False):
        bins = found["bins"]
        axes.plot(
            [each["predicted"] for each in bins],
            [each["observed"] for each in bins],
            marker + "-",
            label=name,
        )
    ends = [0, max(*axes.get_xlim(), *axes.get_ylim())]
    axes.plot(ends, ends, color="black", linewidth=0.8, label="as predicted")
    axes.set_xlabel("mean probability of a bin, predicted")
    axes.set_ylabel("click rate of the bin, observed")
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    return _png(figure)


def _png(figure: Any) -> bytes:  # noqa: ANN401 - matplotlib has no types
    from matplotlib import pyplot as plt  # noqa: PLC0415

    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    plt.close(figure)
    return out.getvalue()

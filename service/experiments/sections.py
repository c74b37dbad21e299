"""What a report shows, part by part, to who was not there: a heading, what to make of it, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from service.experiments.figures import CALIBRATION, by_day, by_domain
from service.experiments.verdict import percent

Table = Sequence[Sequence[str]]
"""Its first row is the head."""
_DASH = "-"
_MOST_DOMAINS = 100
"""Rows of the table of domains; those with the most impressions. All are in report.json."""
_TINY = 1e-4
"""A p below which only that is said."""


class Section(NamedTuple):
    """One part of a report."""

    title: str
    note: str
    table: Table
    picture: str | None = None
    """The name of its figure, if it has one."""
    folded: bool = False
    """Whether its table is long, and not what one looks for first."""


WORDS: Mapping[str, str] = {
    "arm": "one of the ways to answer that are compared; the control is the one that changes nothing",
    "unit": "what was given an arm by chance and keeps it, a user as a rule",
    "impression": "an item that was shown, once for each time",
    "click rate": "clicks over impressions",
    "change": "how much more or less than in the control, in per cent of the control's value",
    "fixed horizon": (
        "an interval that has the true change in it, with 95 % as a rule, if one looks once, on a day chosen "
        "beforehand"
    ),
    "always valid": (
        "a wider interval, which has it on all days together: look whenever you like, and stop when it "
        "excludes 0 %"
    ),
    "p": "how likely so large a difference would be if there was none; small is convincing",
    "CUPED": "the same change, with what was known of each unit beforehand taken out of the noise",
    "Q, I²": "whether domains differ by more than chance; I² is the share of that which is not chance",
    "ECE": "how far probabilities are from click rates, on average over bins",
}
"""What a reader may not know."""
_OF_RATIO = ("arm", "unit", "p")


def headline(report: Mapping[str, Any]) -> str:
    """What was looked at, in a line."""
    log, units = report["log"], report["sample_ratio"]["units"]
    days = "1 day" if log["days"] == 1 else f"{log['days']} days"
    said = [f"{log['first_day']} to {log['last_day']}, {days}", f"{sum(units.values()):,} units"]
    if "control" in report:
        impressions = sum(arm["impressions"] for arm in report["arms"].values())
        others = ", ".join(name for name in units if name != report["control"])
        said += [f"{impressions:,} impressions", f"{others} compared with the control, {report['control']}"]
    return "; ".join(said)


def words(report: Mapping[str, Any]) -> dict[str, str]:
    """Those that the report has, and what they mean."""
    shown = _OF_RATIO if report["sample_ratio"]["mismatch"] else WORDS
    return {word: WORDS[word] for word in shown}


def sections(report: Mapping[str, Any]) -> Iterator[Section]:
    """All parts, what matters most first."""
    yield _sample_ratio(report)
    if not report["sample_ratio"]["mismatch"]:
        yield _arms(report)
        for name, found in report["comparisons"].items():
            yield from _of_treatment(name, found, report)
        if report["calibration"]:
            yield _calibration(report)
    yield _log(report["log"])


def _sample_ratio(report: Mapping[str, Any]) -> Section:
    ratio, weights = report["sample_ratio"], report["plan"]["arms"]
    units = ratio["units"]
    total, whole = sum(units.values()), sum(weights.values())
    says = (
        "No: do not believe any difference between the arms."
        if ratio["mismatch"]
        else "Yes: arms can be compared."
    )
    return Section(
        "Sample ratio",
        f"Do the arms have as many units as they should? {says} {_p(ratio['p'])}; below 0.001 means no.",
        [
            ["arm", "units", "expected"],
            *(
                [name, f"{units[name]:,}", f"{total * weight / whole:,.0f}"]
                for name, weight in weights.items()
            ),
        ],
    )


def _arms(report: Mapping[str, Any]) -> Section:
    level = f"{100 * (1 - report['plan']['alpha']):g} %"
    return Section(
        "Click rate by arm",
        f"Clicks over impressions, and the {level} interval, with the variance of units (delta method).",
        [
            ["arm", "impressions", "clicks", "click rate", f"{level} interval"],
            *(
                [
                    name,
                    f"{arm['impressions']:,}",
                    f"{arm['clicks']:,}",
                    f"{arm['ctr']['value']:.5f}",
                    _DASH
                    if arm["ctr"]["low"] is None
                    else f"{arm['ctr']['low']:.5f} to {arm['ctr']['high']:.5f}",
                ]
                for name, arm in report["arms"].items()
            ),
        ],
    )


def _of_treatment(name: str, found: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[Section]:
    plan = report["plan"]
    head = ["", "change", "fixed horizon", "always valid", "p, fixed", "p, always valid"]
    rows = [_row("click rate", found["ctr"])]
    if "cuped" in found:
        rows.append(_row("click rate, CUPED", found["cuped"]))
    rows += [_row(guardrail, each) for guardrail, each in found["guardrails"].items()]
    if found["novelty"]:
        rows += [
            _row(f"click rate, {half.replace('_', ' ')}", found["novelty"][half])
            for half in ("first_half", "second_half")
        ]
    yield Section(
        f"{name} against {report['control']}",
        (
            "Changes relative to the control. Go by the always-valid interval, unless the day of this look "
            f"was chosen beforehand. The experiment was made to find {percent(plan['lift'])} with power "
            f"{plan['power']:g}."
        ),
        [head, *rows],
    )
    yield Section(
        f"{name} by day",
        (
            "Left, each day alone: does the effect wear off? Right, all days so far: the band may be looked "
            "at on any day, and shows an effect once it leaves 0 %."
        ),
        [
            ["day", "change", "fixed horizon", "all so far", "always valid"],
            *(
                [
                    each["day"],
                    *_row("", each["daily"])[1:3],
                    _row("", each["cumulative"])[1],
                    _row("", each["cumulative"])[3],
                ]
                for each in found["days"]
            ),
        ],
        by_day(name),
        folded=True,
    )
    spread, domains = found["heterogeneity"], found["domains"]
    most = sorted(domains, key=lambda each: -domains[each]["impressions"])[:_MOST_DOMAINS]
    yield Section(
        f"{name} by domain",
        (
            f"Do the effects differ? Q = {spread['q']:.2f} on {spread['df']} degrees of freedom, "
            f"{_p(spread['p'])}, I² = {100 * spread['i2']:.0f} %. "
            "With many domains some intervals miss by chance."
        ),
        [
            ["domain", "impressions", *head[1:]],
            *([each, f"{domains[each]['impressions']:,}", *_row("", domains[each])[1:]] for each in most),
        ],
        by_domain(name),
    )


def _calibration(report: Mapping[str, Any]) -> Section:
    return Section(
        "Calibration",
        "Are probabilities what is then clicked? Points on the line are right, below it promise too much.",
        [
            ["arm", "mean probability", "click rate", "ratio", "ECE"],
            *(
                [
                    name,
                    f"{each['predicted']:.5f}",
                    f"{each['observed']:.5f}",
                    f"{each['predicted'] / each['observed']:.3f}" if each["observed"] else _DASH,
                    f"{each['ece']:.5f}",
                ]
                for name, each in report["calibration"].items()
            ),
        ],
        CALIBRATION,
    )


def _log(log: Mapping[str, Any]) -> Section:
    counted = {name.replace("_", " "): value for name, value in log.items() if not isinstance(value, list)}
    return Section(
        "Log",
        (
            "What was read, and what was left out. Files that end in the middle, read as far as they go: "
            f"{', '.join(log['files_cut']) or 'none'}."
        ),
        [
            ["", ""],
            *([name, f"{value:,}" if isinstance(value, int) else value] for name, value in counted.items()),
        ],
    )


def _row(name: str, effect: Mapping[str, Any]) -> list[str]:
    if effect["se"] is None:
        return [name, *[_DASH] * 5]
    spans = (
        f"{percent(low)} to {percent(high)}"
        for low, high in (effect["lift_fixed"], effect["lift_always_valid"])
    )
    return [
        name,
        percent(effect["lift"]),
        *spans,
        *(
            _p(effect[which]).removeprefix("p = ").removeprefix("p ")
            for which in ("p_fixed", "p_always_valid")
        ),
    ]


def _p(value: float) -> str:
    return f"p < {_TINY:.4f}" if value < _TINY else f"p = {value:.3g}"

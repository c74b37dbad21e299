"""A report as a page: Markdown for a terminal or a ticket, HTML with its pictures inside for a browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from service.experiments.verdict import percent

_DASH = "-"
_MOST_DOMAINS = 100
"""Rows of the table of domains; those with the most impressions. All are in report.json."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
.verdict { border-left: 4px solid #0072b2; padding: .2rem 1rem; background: #f3f8fb }
.stop { border-color: #d55e00; background: #fdf1ea; font-weight: bold }
.note { color: #555; font-size: 14px }
"""
Table = Sequence[Sequence[str]]


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report, without pictures."""
    lines = [f"# Experiment {report['experiment']}", "", *(f"> {said}  " for said in report["verdict"]), ""]
    for title, note, table in _parts(report):
        lines += [f"## {title}", "", note, ""]
        head, *rows = table
        for cells in (head, ["---"] * len(head), *rows):
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def html(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """One file that needs no other.

    Args:
        report: as JSON.
        pictures: PNG by caption.
    """
    stopped = " stop" if report["sample_ratio"]["mismatch"] else ""
    title = escape(f"Experiment {report['experiment']}")
    body = [f"<h1>{title}</h1>", f'<div class="verdict{stopped}">']
    body += [f"<p>{escape(said)}</p>" for said in report["verdict"]] + ["</div>"]
    for caption, picture in pictures.items():
        data = base64.b64encode(picture).decode()
        name = escape(caption)
        body.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    for heading, note, (head, *rows) in _parts(report):
        body.append(f'<h2>{escape(heading)}</h2><p class="note">{escape(note)}</p><table><tr>')
        body += [f"<th>{escape(cell)}</th>" for cell in head] + ["</tr>"]
        body += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
        body.append("</table>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _parts(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Table]]:
    """Title, note and table of each part."""
    ratio, log, plan = report["sample_ratio"], report["log"], report["plan"]
    weights, units = plan["arms"], ratio["units"]
    total = sum(units.values())
    yield (
        "Sample ratio",
        f"Are the units spread as declared? p = {ratio['p']:.3g}; below 0.001 is a mismatch.",
        [
            ["arm", "units", "expected"],
            *(
                [name, f"{units[name]:,}", f"{total * weight / sum(weights.values()):,.0f}"]
                for name, weight in weights.items()
            ),
        ],
    )
    if not ratio["mismatch"]:
        yield from _of_effects(report)
    counted = {name.replace("_", " "): value for name, value in log.items() if not isinstance(value, list)}
    yield (
        "Log",
        f"Files that end in the middle, read as far as they go: {', '.join(log['files_cut']) or 'none'}.",
        [
            ["", ""],
            *([name, f"{value:,}" if isinstance(value, int) else value] for name, value in counted.items()),
        ],
    )


def _of_effects(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Table]]:
    plan, control = report["plan"], report["control"]
    yield (
        "Click rate by arm",
        f"Clicks over impressions; the {100 * (1 - plan['alpha']):g} % interval is by unit (delta method).",
        [
            ["arm", "impressions", "clicks", "click rate", "from", "to"],
            *(
                [
                    name,
                    f"{arm['impressions']:,}",
                    f"{arm['clicks']:,}",
                    *(
                        _DASH if arm["ctr"][part] is None else f"{arm['ctr'][part]:.5f}"
                        for part in ("value", "low", "high")
                    ),
                ]
                for name, arm in report["arms"].items()
            ),
        ],
    )
    head = ["", "change", "fixed horizon", "always valid", "p, fixed", "p, always valid"]
    for name, found in report["comparisons"].items():
        rows = [_row("click rate", found["ctr"])]
        if "cuped" in found:
            rows.append(_row("click rate, CUPED", found["cuped"]))
        rows += [_row(guardrail, each) for guardrail, each in found["guardrails"].items()]
        if found["novelty"]:
            rows += [
                _row(f"click rate, {half.replace('_', ' ')}", found["novelty"][half])
                for half in ("first_half", "second_half")
            ]
        yield (
            f"{name} against {control}",
            (
                "Relative changes. The fixed-horizon interval is for one look on a day chosen beforehand, "
                f"the always-valid one for any; made to find {percent(plan['lift'])} "
                f"with power {plan['power']:g}."
            ),
            [head, *rows],
        )
        spread, domains = found["heterogeneity"], found["domains"]
        most = sorted(domains, key=lambda each: -domains[each]["impressions"])[:_MOST_DOMAINS]
        yield (
            f"{name} by domain",
            (
                f"Do the effects differ? Q = {spread['q']:.2f} on {spread['df']} degrees of freedom, "
                f"p = {spread['p']:.3g}, I² = {100 * spread['i2']:.0f} %. "
                "With many domains some intervals miss by chance."
            ),
            [
                ["domain", "impressions", *head[1:]],
                *([each, f"{domains[each]['impressions']:,}", *_row("", domains[each])[1:]] for each in most),
            ],
        )
        yield (
            f"{name} by day",
            "Each day alone, and all days up to it; the interval of the latter is always valid.",
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
        )
    yield (
        "Calibration",
        "What the model said beside what was clicked; ECE over bins of equally many impressions.",
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
        f"{effect['p_fixed']:.3g}",
        f"{effect['p_always_valid']:.3g}",
    ]

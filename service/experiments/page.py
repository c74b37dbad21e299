"""A report as a page: Markdown for a terminal or a ticket, HTML with its pictures inside for a browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from service.experiments.sections import Section, Table, headline, sections, words

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto }
body { padding: 0 1rem }
h1 { line-height: 1.2; margin-bottom: .2rem }
h2 { margin: 2.2rem 0 .2rem; border-top: 1px solid #ddd; padding-top: 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .8rem 0; font-size: 14px }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { vertical-align: bottom; border-color: #888 }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
img { max-width: max(100%, 30rem); height: auto; display: block; margin: .8rem 0 }
summary { cursor: pointer; color: #0072b2; font-size: 14px }
.verdict { border-left: 6px solid #0072b2; padding: .2rem 1.2rem; margin: 1rem 0; background: #f3f8fb }
.verdict strong { font-size: 1.2em }
.stop { border-color: #d55e00; background: #fdf1ea }
.note { color: #555; font-size: 14px; margin: .2rem 0 }
dl { font-size: 14px } dt { font-weight: bold } dd { margin: 0 0 .4rem 1rem; color: #555 }
"""


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report, without pictures."""
    lines = [f"# Experiment {report['experiment']}", "", headline(report), ""]
    lines += [*(f"> {said}  " for said in report["verdict"]), ""]
    for part in sections(report):
        lines += [f"## {part.title}", "", part.note, ""]
        head, *rows = part.table
        for cells in (head, ["---"] * len(head), *rows):
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def html(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """One file that needs no other.

    Args:
        report: as JSON.
        pictures: PNG by the name that a section has for it.
    """
    stopped = report["sample_ratio"]["mismatch"]
    title = escape(f"Experiment {report['experiment']}")
    body = [f'<h1>{title}</h1><p class="note">{escape(headline(report))}</p>']
    body.append(f'<div class="verdict{" stop" if stopped else ""}">')
    first, dot, rest = escape(report["verdict"][0]).partition(". ")
    body.append(f"<p><strong>{first}{dot}</strong>{rest}</p>")
    body += [f"<p>{escape(said)}</p>" for said in report["verdict"][1:]] + ["</div>"]
    for part in sections(report):
        body += _section(part, pictures)
    body.append("<h2>Words</h2><dl>")
    body += [f"<dt>{escape(word)}</dt><dd>{escape(says)}</dd>" for word, says in words(report).items()]
    body.append("</dl>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _section(part: Section, pictures: Mapping[str, bytes]) -> Iterator[str]:
    yield f'<h2>{escape(part.title)}</h2><p class="note">{escape(part.note)}</p>'
    if part.picture is not None and part.picture in pictures:
        data = base64.b64encode(pictures[part.picture]).decode()
        alt = escape(f"{part.title}: {part.note}")
        yield f'<div class="wide"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'
    if part.folded:
        yield f"<details><summary>The numbers, {len(part.table) - 1} rows</summary>"
    yield from _table(part.table)
    if part.folded:
        yield "</details>"


def _table(table: Table) -> Iterator[str]:
    head, *rows = table
    yield '<div class="wide"><table>'
    if any(head):
        yield f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    yield "</table></div>"

"""`Panel`: what a dashboard of Grafana says to draw, read from its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "service.json"


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    expression: str
    """PromQL, with Grafana's variables in it."""
    legend: str
    """A series' name, with labels in double braces."""

    def filled(self, rate: str) -> str:
        """The expression for all domains, with rates over so long."""
        return self.expression.replace("$domain", ".*").replace("$__rate_interval", rate)

    def name(self, labels: Mapping[str, str]) -> str:
        """A series' name."""
        name = self.legend
        for label, value in labels.items():
            name = name.replace(f"{{{{{label}}}}}", value)
        return name


@dataclass(frozen=True)
class Panel:
    """A picture of a dashboard, or a row's title."""

    title: str
    description: str
    kind: str
    unit: str
    place: Mapping[str, int]
    """`x`, `y`, `w`, `h`, of 24 columns."""
    queries: tuple[Query, ...]
    lines: tuple[float, ...]
    """Thresholds that are drawn."""
    stacked: bool


def panels(dashboard: Path = DASHBOARD) -> list[Panel]:
    """Every panel, rows' titles among them, from the top."""
    return [_panel(each) for each in json.loads(dashboard.read_text())["panels"]]


def _panel(given: Mapping[str, Any]) -> Panel:
    defaults = given.get("fieldConfig", {}).get("defaults", {})
    custom = defaults.get("custom", {})
    drawn = custom.get("thresholdsStyle", {}).get("mode", "off") != "off"
    steps = defaults.get("thresholds", {}).get("steps", []) if drawn else []
    return Panel(
        given["title"],
        given.get("description", ""),
        given["type"],
        defaults.get("unit", ""),
        given["gridPos"],
        tuple(Query(each["expr"], each["legendFormat"]) for each in given.get("targets", [])),
        tuple(step["value"] for step in steps if step["value"] is not None),
        custom.get("stacking", {}).get("mode") == "normal",
    )

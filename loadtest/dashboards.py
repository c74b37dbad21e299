"""The dashboard with data: a service under traffic, a Prometheus that asks it, and all panels in one picture.

Grafana has no part in it: the picture has the panels where the dashboard puts them, each with what Prometheus
answers to its own queries.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

import numpy as np
from rich.console import Console

from loadtest.dashboard_panels import Panel, panels
from loadtest.dashboard_picture import Drawn, Series, draw
from loadtest.prometheus_server import Prometheus, prometheus
from loadtest.redis_server import redis_server
from loadtest.server import service
from loadtest.stage import Size as ModelSize
from loadtest.stage import Stage, stage
from loadtest.visitors import EXPERIMENTS, Visitors
from service.stores._open import open_store

_RATE = "20s"
"""What rates are taken over: as in Grafana, a few scrapes."""
_STEP = 1.0
"""Seconds between two points of a picture."""
_RAISED = 0.5
"""What the promoted pack adds to a logit."""
_CALM = 15.0
"""Seconds at the beginning that are not drawn, in which rates have nothing to be taken over."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    seconds: float = 150.0
    rate: float = 60.0
    """Requests a second at first; it rises by a half, and falls again."""
    workers: int = 2
    model: ModelSize = field(default_factory=lambda: ModelSize(items=20_000, rows=40_000, hidden=(64, 32)))


def watch(size: Size, out: Path, folder: Path, console: Console) -> list[str]:
    """Run everything for a while and draw it.

    Half-way a pack of the first domain is promoted that scores higher than it should, and users come with
    values that nobody has seen.

    Args:
        size: how much.
        out: the picture.
        folder: for logs.
        console: for progress.

    Returns:
        Titles of panels without data; there should be none.
    """
    console.print("training a little, exporting, publishing", style="dim")
    with (
        tempfile.TemporaryDirectory(prefix="mdctr-dashboards-") as name,
        stage(size.model, folder) as made,
        redis_server() as users,
    ):
        place = Path(name)
        (place / "experiments.json").write_text(EXPERIMENTS)
        settings = {
            "MDCTR_WORKERS": str(size.workers),
            "MDCTR_USERS": users,
            "MDCTR_EXPERIMENTS": str(place / "experiments.json"),
            "MDCTR_EXPOSURES": str(place / "exposures"),
            "MDCTR_LOG_FORMAT": "json",
        }
        with (
            service(made.bundle.path, made.store, folder / "service.log", settings) as url,
            prometheus(url, place / "prometheus") as asked,
        ):
            console.print(f"{size.seconds:g} s of traffic", style="dim")
            began = time.time()
            _visit(url, made, size)
            shown = panels()
            drawn = [series(asked, panel, began + _CALM, time.time()) for panel in shown]
            draw(drawn, out)
    return [each.panel.title for each in drawn if each.panel.kind != "row" and not each.series]


def series(asked: Prometheus, panel: Panel, start: float, end: float) -> Drawn:
    """What Prometheus answers to a panel's queries."""
    found = []
    for query in panel.queries:
        expression = query.filled(_RATE)
        if panel.kind == "table":
            rows = asked.now(expression)
            found += [Series(query.name(row["metric"]), np.zeros(0), np.zeros(0)) for row in rows]
            continue
        for each in asked.between(expression, start, end, _STEP):
            points = np.array([(moment - start, float(value)) for moment, value in each["values"]])
            found.append(Series(query.name(each["metric"]), points[:, 0], points[:, 1]))
    return Drawn(panel, found)


def _visit(url: str, made: Stage, size: Size) -> None:
    """Traffic, and in its middle a promotion."""
    half = size.seconds / 2

    def rate(now: float) -> float:
        return size.rate * (1 + 0.5 * math.sin(math.pi * now / size.seconds) ** 2)

    def strange(now: float) -> float:
        return 0.02 if now < half else 0.3

    visitors = Visitors(url, made.bundle)
    visiting = Thread(target=visitors.visit, args=(size.seconds, rate, strange))
    visiting.start()
    time.sleep(half)
    asyncio.run(_promote(made, made.bundle.manifest.domains[0], visitors))
    visiting.join()


async def _promote(made: Stage, domain: str, visitors: Visitors) -> None:
    """A pack whose calibration adds to every logit, which makes no user click more."""
    store = open_store(made.store, made.bundle.manifest.bundle)
    try:
        pack = made.pack(domain)
        scale, shift = pack.calibration
        raised = replace(pack, calibration=np.array([scale, shift + _RAISED], np.float32))
        version = await store.put(domain, raised.to_bytes())
        visitors.exaggerates[version] = _RAISED
        await store.promote({domain: version})
    finally:
        await store.close()

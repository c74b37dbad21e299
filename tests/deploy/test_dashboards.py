"""The dashboard says what there is: metrics and labels of the registry, and queries that Prometheus answers.

The last part runs a real service with two workers under a little traffic, and a real Prometheus that asks it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.core import GaugeMetricFamily

from loadtest.dashboard_panels import DASHBOARD, Panel, Query, panels
from loadtest.dashboard_picture import Drawn, draw
from loadtest.dashboards import series
from loadtest.prometheus_server import Prometheus, PrometheusError, prometheus
from loadtest.server import service
from loadtest.visitors import EXPERIMENTS, Visitors, _lowered
from service.telemetry import Metrics
from tests.service import bundles
from tests.service.conftest import Publisher
from tests.service.waiting import eventually

ROOT = Path(__file__).parents[2]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "or",
    "and",
    "unless",
    "offset",
    "bool",
}
UNITS = {"reqps", "rowsps", "eps", "percentunit", "s", "bytes", "short", "none"}
"""Of Grafana's, those that the dashboard uses."""
TRAFFIC = 12.0
"""Seconds of it."""


def exposed() -> dict[str, set[str]]:
    """By name as Prometheus has it, the labels of each metric of the service."""
    found: dict[str, set[str]] = {}
    registry = Metrics().registry
    for family in registry.collect():
        [collector] = [each for each, names in registry._collector_to_names.items() if family.name in names]
        labels = set(getattr(collector, "_labelnames", ()))
        if isinstance(family, GaugeMetricFamily):
            labels |= set(family._labelnames)
        if family.type == "histogram":
            found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
            found[f"{family.name}_bucket"] = labels | {"le"}
        else:
            found[f"{family.name}_total" if family.type == "counter" else family.name] = labels
    return found


class Said(NamedTuple):
    """What an expression names."""

    metrics: dict[str, set[str]]
    """With the labels that are asked of each."""
    grouped: set[str]
    """Labels in `by`, `on` and the like."""


def parse(expression: str) -> Said:
    """The names in PromQL: a word before a parenthesis is a function, one before braces or alone a metric."""
    text = re.sub(r"\[[^]]*\]", "", expression)
    grouped: set[str] = set()

    def group(match: re.Match[str]) -> str:
        grouped.update(name.strip() for name in match[2].split(",") if name.strip())
        return " "

    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", group, text)
    metrics: dict[str, set[str]] = {}

    def selector(match: re.Match[str]) -> str:
        metrics.setdefault(match[1], set()).update(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', match[2]))
        return " "

    text = re.sub(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", selector, text)
    text = re.sub(r'"[^"]*"', " ", text)
    for name in re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", text):
        if name not in WORDS:
            metrics.setdefault(name, set())
    return Said(metrics, grouped)


def wrong(expression: str) -> list[str]:
    """What an expression names that the service does not have."""
    there = exposed()
    said = parse(expression)
    found = [name for name in said.metrics if name not in there]
    for name, labels in said.metrics.items():
        found += sorted(f"{name}{{{label}}}" for label in labels - there.get(name, set()) - SCRAPED)
    labelled = SCRAPED.union(*(there.get(name, set()) for name in said.metrics))
    return found + sorted(said.grouped - labelled)


class TestParse:
    def test_finds_metrics_their_labels_and_what_is_grouped(self) -> None:
        said = parse(
            'histogram_quantile(0.99, sum by (le, domain) (rate(a_bucket{x=~"$d",y!="z"}[5m]))) '
            "/ on (job) group_left () b_total offset 5m or vector(0)"
        )
        assert said.metrics == {"a_bucket": {"x", "y"}, "b_total": set()}
        assert said.grouped == {"le", "domain", "job"}

    @pytest.mark.parametrize(
        ("expression", "fault"),
        [
            ("rate(mdctr_request_total[5m])", "mdctr_request_total"),
            ("rate(mdctr_requests[5m])", "mdctr_requests"),
            ('mdctr_ready{domain="x"}', "mdctr_ready{domain}"),
            ('rate(mdctr_requests_total{code="200"}[5m])', "mdctr_requests_total{code}"),
            ("sum by (arm) (rate(mdctr_requests_total[5m]))", "arm"),
            ("sum by (le) (rate(mdctr_request_seconds_sum[5m]))", "le"),
        ],
    )
    def test_a_misspelt_name_is_found(self, expression: str, fault: str) -> None:
        assert wrong(expression) == [fault]

    def test_what_is_right_is_right(self) -> None:
        assert not wrong('max by (domain, pack) (mdctr_pack_info{domain="x", job="y"})')


PANELS = [panel for panel in panels() if panel.kind != "row"]
QUERIES = [pytest.param(panel, query, id=panel.title) for panel in PANELS for query in panel.queries]


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_a_query_names_what_the_service_has(panel: Panel, query: Query) -> None:
    assert not wrong(query.expression)
    # A legend names labels that the query leaves.
    shown = set(re.findall(r"{{(\w+)}}", query.legend))
    assert shown <= parse(query.expression).grouped


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_says_what_it_is(panel: Panel) -> None:
    assert panel.title
    assert len(panel.description) > 20
    assert panel.unit in UNITS
    assert panel.queries


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


class TestDocument:
    def test_is_of_grafanas_classic_model(self) -> None:
        found = document()
        # 39 is that of Grafana 11; later ones bring it up to date when they read it.
        assert found["schemaVersion"] == 39
        assert found["uid"]
        assert found["title"]
        assert {panel["type"] for panel in found["panels"]} <= {"row", "timeseries", "table"}

    def test_ids_and_titles_are_unique(self) -> None:
        for key in ("id", "title"):
            named = [panel[key] for panel in document()["panels"]]
            assert len(set(named)) == len(named)

    def test_panels_fill_rows_of_24_columns_and_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in panels():
            x, y, w, h = (panel.place[side] for side in "xywh")
            cells = {(column, line) for column in range(x, x + w) for line in range(y, y + h)}
            assert x + w <= 24
            assert not taken & cells, panel.title
            taken |= cells
        assert len(taken) == 24 * max(line + 1 for _, line in taken)

    def test_every_query_asks_the_chosen_prometheus(self) -> None:
        found = document()
        for panel in found["panels"]:
            for part in (panel, *panel.get("targets", [])):
                if panel["type"] != "row":
                    assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}

    def test_variables_that_are_used_are_declared(self) -> None:
        found = document()
        declared = {variable["name"] for variable in found["templating"]["list"]}
        text = json.dumps(found["panels"])
        used = set(re.findall(r"\$\{?([a-z]\w*)", text))
        assert used == declared
        for variable in found["templating"]["list"]:
            if variable["type"] == "query":
                assert not wrong(
                    re.sub(r"label_values\((\w+), (\w+)\)", r"sum by (\2) (\1)", variable["definition"])
                )

    def test_provisioning_brings_the_source_and_the_folder_that_compose_mounts(self) -> None:
        grafana = ROOT / "deploy" / "grafana" / "provisioning"
        [source] = yaml.safe_load((grafana / "datasources" / "prometheus.yaml").read_text())["datasources"]
        assert source["type"] == "prometheus"
        assert source["isDefault"]
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        assert source["url"] == "http://prometheus:9090"
        assert "prometheus" in compose
        scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
        assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
        [provider] = yaml.safe_load((grafana / "dashboards" / "mdctr.yaml").read_text())["providers"]
        mounted = [mount.split(":")[1] for mount in compose["grafana"]["volumes"]]
        assert f"{provider['options']['path']}/service.json" in mounted

    def test_prometheus_asks_the_service_of_compose(self) -> None:
        scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
        [job] = scraped["scrape_configs"]
        assert job["static_configs"] == [{"targets": ["service:8080"]}]
        assert scraped["rule_files"] == ["rules.yml", "alerts.yml"]


class Watched(NamedTuple):
    """A Prometheus that watched a service for a while."""

    prometheus: Prometheus
    since: float
    until: float
    """When the traffic ended; other tests may run between it and a question."""


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("there is no Prometheus on this machine")
    place = tmp_path_factory.mktemp("watched")
    bundle = bundles.make_bundle(place / "bundle")
    publisher = Publisher(f"directory:{place / 'store'}")
    publisher.raw(dict(bundle.packs()))
    (place / "experiments.json").write_text(EXPERIMENTS)
    settings = {
        "MDCTR_WORKERS": "2",
        "MDCTR_EXPERIMENTS": str(place / "experiments.json"),
        "MDCTR_EXPOSURES": str(place / "exposures"),
        "MDCTR_DRAIN_SECONDS": "0",
        "OMP_NUM_THREADS": "1",
    }
    with service(bundle.path, publisher.url, place / "log", settings) as url:
        # A series counts from its second value, so all of them are to be there once before Prometheus looks.
        Visitors(url, bundle).visit(3.0, lambda _: 40.0, lambda _: 0.1)
        with prometheus(url, place / "prometheus", every=0.5) as asked:
            began = time.time()
            Visitors(url, bundle, seed=1).visit(TRAFFIC, lambda _: 40.0, lambda _: 0.1)
            yield Watched(asked, began, time.time())


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_a_query_returns_data(watched: Watched, panel: Panel, query: Query) -> None:
    found = watched.prometheus.now(query.filled("10s"), watched.until)
    assert found
    values = [float(each["value"][1]) for each in found]
    assert any(value == value for value in values), "nothing but NaN"  # noqa: PLR0124 - which only NaN is not
    for each in found:
        assert "{{" not in query.name(each["metric"])


def test_counts_add_up(watched: Watched) -> None:
    """That it is this service's traffic which the panels show, of both workers together."""

    def one(query: str) -> float:
        [found] = watched.prometheus.now(query)
        return float(found["value"][1])

    assert one("sum(mdctr_requests_total)") > 40 * TRAFFIC / 2
    scored = 'sum(mdctr_stage_seconds_count{stage="engine"})'
    eventually(lambda: one(scored) == one('sum(mdctr_requests_total{status="200"})'))


def test_what_is_no_promql_is_an_error(watched: Watched) -> None:
    with pytest.raises(PrometheusError, match="parse error"):
        watched.prometheus.now("sum by (")


def test_the_picture_has_every_panel(watched: Watched, tmp_path: Path) -> None:
    drawn = [series(watched.prometheus, panel, watched.since + 3, watched.until) for panel in panels()]
    assert [each.panel.title for each in drawn if each.panel.kind != "row" and not each.series] == []
    draw(drawn, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")


def test_clicks_fall_short_by_what_a_pack_exaggerates() -> None:
    assert _lowered(0.5, math.log(3)) == pytest.approx(0.25)  # odds of 1 to 1 become 1 to 3
    assert _lowered(0.3, 0.0) == pytest.approx(0.3)
    assert _lowered(1.0, 0.5) == pytest.approx(1.0)


def test_a_panel_without_data_is_drawn_too(tmp_path: Path) -> None:
    draw([Drawn(PANELS[0], [])], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()

"""Rules and alerts: Prometheus takes them, each alert fires when it should, and what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES, ALERTS = FOLDER / "rules.yml", FOLDER / "alerts.yml"
PAGE = ROOT / "docs" / "alerts.md"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed"
)

MINUTES = 200
"""Of a simulation, a sample each: more than the two hours after which something is usual."""
LAST = MINUTES - 1
TURN = 180
"""The minute in which things go wrong."""
LOOKS = TURN - 1, TURN + 8, LAST
"""Minutes at which is looked for alerts. Some end soon, and some begin late."""


def loaded(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


NAMES = [rule["alert"] for rule in loaded(ALERTS)]


def grows(before: float, after: float | None = None, start: float = 0) -> str:
    """A counter that grows by so much a minute, and from the turn on by something else."""
    then = start + before * TURN
    return f"{start}+{before}x{TURN} " + f"{then}+{before if after is None else after}x{LAST - TURN - 1}"


def stays(before: float, after: float | None = None) -> str:
    return f"{before}+0x{TURN} {before if after is None else after}+0x{LAST - TURN - 1}"


def histogram(name: str, domain: str, shares: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """By edge, what is counted up to it in a minute, before and after the turn."""
    buckets = {
        f'{name}_bucket{{instance="a",domain="{domain}",le="{edge}"}}': grows(*pair)
        for edge, pair in shares.items()
    }
    return {**buckets, f'{name}_count{{instance="a",domain="{domain}"}}': grows(*shares["+Inf"])}


def healthy() -> dict[str, str]:
    """By series, what a service says that is well; 600 requests a minute, for each 10 items shown."""
    found = {
        'up{job="mdctr",instance="a"}': stays(1),
        'mdctr_ready{instance="a"}': stays(1),
        'mdctr_store_contact_timestamp_seconds{instance="a"}': grows(60),
        'mdctr_packs_from_shelf{instance="a"}': stays(0),
        'mdctr_resident_bytes{instance="a"}': stays(9e8),
        'mdctr_resident_bytes_limit{instance="a"}': stays(1e9),
        'mdctr_waiting{instance="a"}': stays(3),
        'mdctr_permits{instance="a"}': stays(256),
        'mdctr_packs_brought_total{instance="a"}': grows(0),
        'mdctr_items_refused_total{instance="a"}': grows(0),
        'mdctr_experiments_refused_total{instance="a"}': grows(0),
        'mdctr_users_missed_total{instance="a",reason="late"}': grows(1),
        'mdctr_exposures_dropped_total{instance="a",reason="full"}': grows(0),
        'mdctr_refused_total{instance="a",reason="deadline"}': grows(5),
        'mdctr_values_total{instance="a",field="user.age"}': grows(1200),
        'mdctr_unknown_values_total{instance="a",field="user.age"}': grows(24),
    }
    for domain in ("books", "films", "games"):
        here = f'instance="a",domain="{domain}"'
        found |= {
            f'mdctr_requests_total{{{here},status="200"}}': grows(400),
            f'mdctr_requests_total{{{here},status="429"}}': grows(2),
            f'mdctr_requests_total{{{here},status="503"}}': grows(1),
            f'mdctr_pack_info{{{here},pack="1"}}': stays(1),
            f"mdctr_pack_since_timestamp_seconds{{{here}}}": stays(60),
            f"mdctr_packs_refused_total{{{here}}}": grows(0),
            f"mdctr_shown_total{{{here}}}": grows(4000),
            f"mdctr_shown_probability_total{{{here}}}": grows(400),
            f"mdctr_shown_variance_total{{{here}}}": grows(340),
            f"mdctr_clicked_total{{{here}}}": grows(280),
        }
        found |= histogram("mdctr_scores", domain, {"0.1": (40, 40), "0.5": (90, 90), "+Inf": (100, 100)})
        found |= histogram(
            "mdctr_request_seconds", domain, {"0.015": (401, 401), "0.05": (403, 403), "+Inf": (403, 403)}
        )
    return found


def books(name: str, value: str, **labels: str) -> dict[str, str]:
    """A series of one domain."""
    more = "".join(f',{key}="{one}"' for key, one in labels.items())
    return {f'{name}{{instance="a",domain="books"{more}}}': value}


def instance(name: str, value: str, **labels: str) -> dict[str, str]:
    more = "".join(f',{key}="{one}"' for key, one in labels.items())
    return {f'{name}{{instance="a"{more}}}': value}


def each_domain(name: str, value: str, **labels: str) -> dict[str, str]:
    more = "".join(f',{key}="{one}"' for key, one in labels.items())
    return {
        f'{name}{{instance="a",domain="{domain}"{more}}}': value for domain in ("books", "films", "games")
    }


CASES: Mapping[str, Mapping[str, str | None]] = {
    "MdctrDown": {'up{job="mdctr",instance="a"}': stays(1, 0)},
    "MdctrAbsent": {'mdctr_ready{instance="a"}': f"1+0x{TURN} stale"},
    "MdctrNotReady": instance("mdctr_ready", stays(1, 0)),
    "MdctrErrors": books("mdctr_requests_total", grows(1, 40), status="503"),
    "MdctrShedding": instance("mdctr_refused_total", grows(5, 100), reason="deadline"),
    "MdctrSlow": books("mdctr_request_seconds_bucket", grows(401, 380), le="0.015"),
    "MdctrPermitsShort": instance("mdctr_waiting", stays(3, 250)),
    "MdctrNoRequests": {
        **each_domain("mdctr_requests_total", grows(400, 0), status="200"),
        **each_domain("mdctr_requests_total", grows(2, 0), status="429"),
        **each_domain("mdctr_requests_total", grows(1, 0), status="503"),
    },
    "MdctrUsersMissed": instance("mdctr_users_missed_total", grows(1, 120), reason="late"),
    "MdctrStoreLost": instance("mdctr_store_contact_timestamp_seconds", grows(60, 0)),
    "MdctrFromShelf": instance("mdctr_packs_from_shelf", stays(0, 1)),
    "MdctrPackRefused": books("mdctr_packs_refused_total", grows(0, 0.1)),
    "MdctrPacksDiffer": {'mdctr_pack_info{instance="b",domain="books",pack="2"}': stays(1)},
    "MdctrPackOld": books("mdctr_pack_since_timestamp_seconds", stays(60, -31 * 86400)),
    "MdctrPinnedTooLarge": instance("mdctr_resident_bytes", stays(9e8, 2e9)),
    "MdctrPacksThrash": instance("mdctr_packs_brought_total", grows(0, 100)),
    "MdctrItemsRefused": instance("mdctr_items_refused_total", grows(0, 0.1)),
    "MdctrExperimentsRefused": instance("mdctr_experiments_refused_total", grows(0, 0.1)),
    "MdctrExposuresDropped": instance("mdctr_exposures_dropped_total", grows(0, 5), reason="full"),
    "MdctrCalibrationOff": books("mdctr_clicked_total", grows(280, 380)),
    "MdctrClicksLost": each_domain("mdctr_clicked_total", grows(280, 140)),
    "MdctrEventsGone": each_domain("mdctr_shown_total", grows(4000, 0)),
    "MdctrScoresMoved": books("mdctr_scores_bucket", grows(40, 10), le="0.1"),
    "MdctrUnknownValues": instance("mdctr_unknown_values_total", grows(24, 300), field="user.age"),
    "MdctrFieldMissing": instance("mdctr_values_total", grows(1200, 300), field="user.age"),
}
"""By alert, series in place of the healthy ones."""


def simulated(folder: Path, series: Mapping[str, str | None]) -> list[dict[str, str]]:
    """Alerts that fire at one of the looks, with labels and annotations."""
    asked = {
        "rule_files": [str(RULES), str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "external_labels": {"runbooks": "https://example.org/"},
                "alert_rule_test": [
                    {"eval_time": f"{at}m", "alertname": name, "exp_alerts": []}
                    for at in LOOKS
                    for name in NAMES
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(asked))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    found = [
        dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', one))
        for got in re.findall(r"got:\[(.*?)\n?\s*\]\s*(?:\n|$)", said, re.DOTALL)
        for one in re.findall(r"Labels:\{.*?\}\s*Annotations:\{.*?\}(?=\s*(?:\d+:|$|\]|\n))", got, re.DOTALL)
    ]
    assert (done.returncode != 0) == bool(found), said
    return found


def test_every_alert_has_a_case() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert set(CASES) == set(NAMES)


@needs_promtool
@pytest.mark.parametrize("path", [RULES, ALERTS], ids=lambda path: path.name)
def test_prometheus_takes_the_rules(path: Path) -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_configuration_and_finds_the_rules() -> None:
    config = FOLDER / "prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(yaml.safe_load(config.read_text())["rule_files"]) == {RULES.name, ALERTS.name}


@needs_promtool
def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    assert simulated(tmp_path, healthy()) == []


@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_it_fires_when_it_should(name: str, tmp_path: Path) -> None:
    found = [one for one in simulated(tmp_path, {**healthy(), **CASES[name]}) if one["alertname"] == name]
    assert found
    for one in found:
        assert one["summary"]
        assert one["runbook_url"] == f"https://example.org/docs/alerts.md#{name.lower()}"
        assert "error" not in one["summary"] + one["description"]


@pytest.mark.parametrize("rule", loaded(ALERTS), ids=lambda rule: rule["alert"])
def test_it_says_how_bad_it_is_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    base, place = rule["annotations"]["runbook_url"].split("}}")
    assert base == "{{ $externalLabels.runbooks "
    path, anchor = place.split("#")
    assert ROOT / path == PAGE
    section = sections()[anchor]
    assert section.title == rule["alert"]
    assert section.text.startswith(f"*{rule['labels']['severity']}.*")
    assert "\n- See" in section.text
    assert "Do: " in section.text or "do: " in section.text


def test_the_page_has_no_section_of_an_alert_that_is_gone() -> None:
    assert [section.title for section in sections().values()] == NAMES


class Section:
    def __init__(self, title: str, text: str) -> None:
        self.title, self.text = title, text.strip()


def sections() -> dict[str, Section]:
    """By anchor, as a heading is linked to."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {
        title.lower().replace(" ", "-"): Section(title, text)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def exposed() -> dict[str, set[str]]:
    """By name as Prometheus has it, the labels of each series of the service."""
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for collector in list(metrics.registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.describe():  # type: ignore[attr-defined]
            if family.name == "mdctr_pack_info":
                labels = {"domain", "pack"}
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
            for end in ends:
                found[family.name + end] = labels | ({"le"} if end == "_bucket" else set())
    return found


WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_:][A-Za-z0-9_:]*')


def series(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics of an expression, with the labels that their selectors name."""
    plain = re.sub(r"\[[^\]]*\]|\$\{?\w+\}?", "", expression)  # durations, and a dashboard's variables
    for found in WORDS.finditer(plain):
        word, behind = found[0], plain[found.end() :].lstrip()
        if word.startswith('"') or not (word.startswith("mdctr") or ":" in word):
            continue
        inside = behind[1 : behind.index("}")] if behind.startswith("{") else ""
        yield word, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"(?:[^"\\]|\\.)*"', '""', inside)))


def dashboards() -> list[tuple[str, str]]:
    def found(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "expr":
                    yield value
                elif key == "query" and isinstance(value, str):
                    yield value.removeprefix("label_values(")
                else:
                    yield from found(value)
        elif isinstance(node, list):
            for each in node:
                yield from found(each)

    return [(path.name, each) for path in DASHBOARDS for each in found(json.loads(path.read_text()))]


def expressions() -> list[tuple[str, str]]:
    rules = [(path.name, str(rule["expr"])) for path in (RULES, ALERTS) for rule in loaded(path)]
    return rules + dashboards()


def unknown(expression: str) -> list[str]:
    """What an expression names that there is not."""
    recorded, measured = {rule["record"] for rule in loaded(RULES) if "record" in rule}, exposed()
    wrong = []
    for name, labels in series(expression):
        if ":" in name:
            wrong += [] if name in recorded else [name]
        elif name not in measured:
            wrong.append(name)
        else:
            # Labels that Prometheus adds to what it reads.
            wrong += [f"{name}: {label}" for label in labels - measured[name] - {"instance", "job"}]
    return wrong


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_metric_that_is_named_exists(where: str, expression: str) -> None:
    assert unknown(expression) == [], where


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(mdctr_request_total)",
        "rate(mdctr_requests[5m])",
        "mdctr_scores",
        'mdctr_ready{domain="x"}',
        "domain:mdctr_calibration:rate",
        'increase(mdctr_requests_total{ stats=~"5.." }[$__rate_interval])',
    ],
)
def test_a_misspelt_one_is_found(wrong: str) -> None:
    assert unknown(wrong)


def test_what_is_right_is_not() -> None:
    assert not unknown('sum by (le) (rate(mdctr_scores_bucket{domain=~"$domain",le="0.1",job="a"}[5m]))')
    assert not unknown('label_replace(mdctr_ready, "a", "mdctr_nothing", "b", "c")')


def test_the_commands_of_the_page_exist() -> None:
    import typer.main

    from export.__main__ import app as export
    from service.__main__ import app as service

    roots = {"export": typer.main.get_command(export), "service": typer.main.get_command(service)}
    named = re.findall(r"python -m (export|service) ([^`]+)`", PAGE.read_text().replace("\n", " "))
    assert named
    for module, line in named:
        command: Any = roots[module]
        options: set[str] = set()
        for word in line.split():
            if hasattr(command, "commands") and re.fullmatch(r"[a-z-]+", word):
                command = command.commands[word]
            elif word.startswith("--"):
                options.add(word)
        assert not hasattr(command, "commands"), line
        assert options <= {name for each in command.params for name in each.opts}, line


def test_the_settings_of_the_page_exist() -> None:
    from service.settings import Settings

    for name in re.findall(r"MDCTR_([A-Z_]+)", PAGE.read_text()):
        assert name.lower() in Settings.model_fields, name

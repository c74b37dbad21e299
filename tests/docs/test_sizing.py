"""What the page on sizes says is what the command prints, and what the reports have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from loadtest.queueing import wait_quantile
from loadtest.size import _SAMPLES, Asked, Fleet, Measured
from service.telemetry import Metrics
from tests.deploy.manifests import K8S, PRIVATE, REDIS, UNITS, env_file
from tests.deploy.test_redis_conf import directives

FIGURES = Path("docs/figures")


def page() -> str:
    return " ".join(Path("docs/sizing.md").read_text().split())


def report(name: str) -> Any:
    return json.loads((FIGURES / f"{name}.json").read_text())


def test_the_table_is_the_commands() -> None:
    found = Fleet(Asked(), Measured.load(FIGURES))
    assert found.sheet().markdown() in Path("docs/sizing.md").read_text()


def test_what_the_text_says_is_in_the_reports() -> None:
    found, text = Fleet(Asked(), Measured.load(FIGURES)), page()
    busy = report("bench")["http"]["json"]
    scaling, alone = report("loadtest-scaling")["scaling"], report("loadtest")
    shares = [each["share_of_saturated"] for each in scaling.values()]
    slower = scaling["4"]["saturated_rps"] / 4
    service = 1 / found.measured.busy(500)
    wait = wait_quantile(0.99, alone["share_of_saturated"] / service, service)
    for said in (
        f"{busy['100']['rps_busy']:,.0f} requests/s of 100 candidates",
        f"{busy['500']['rps_busy']:,.0f} of 500",
        f"{found.measured.busy(200):,.0f} of 200",
        f"between {min(shares):.2f} and {max(shares):.2f}",
        f"{scaling['4']['share_of_saturated']:.2f} with four workers",
        f"one worker on a machine of its own {alone['share_of_saturated']:.2f}",
        f"{1e3 * (service + wait):.1f} ms at that load",
        f"{slower:,.0f} requests/s of 500 candidates a worker",
        f"{found.measured.private / 1e6:,.0f} MB",
        f"{found.pack.resident / 1e3:,.0f} KB resident and {found.pack.kept / 1e3:,.0f} KB in Redis",
        f"{found.item_table / 1e6:,.0f} MB of item table",
        f"{found.measured.log_bytes(200):,.0f} bytes",
        f"{report('bench-exposures')['candidates']['500']['cost']['whole']:.1%} more of an answer's",
        f"{found.redis_start / 1e9:,.0f} GB",
        f"{report('bench-domains')['forms']['sparse']['load_ms_a_pack']:.1f} ms a pack",
        f"{report('bench-swap')['converge_s_max']:.2f} s",
    ):
        assert said in text, said


def test_the_manifests_have_room_for_what_the_page_sizes() -> None:
    found = Fleet(Asked(), Measured.load(FIGURES))
    assert found.measured.private <= PRIVATE
    given = env_file(K8S / "base/settings.env")
    assert found.resident <= int(given["MDCTR_RESIDENT_BYTES"])
    assert found.resident <= int(given["MDCTR_SHELF_BYTES"])
    assert found.item_table <= int(given["MDCTR_ITEMS_BYTES"])
    assert Asked().workers == int(given["MDCTR_WORKERS"])
    most = directives((REDIS / "redis.conf").read_text())["maxmemory"]
    assert found.redis_memory * 1.25 <= int(most.removesuffix("gb")) * UNITS["Gi"]


def test_a_page_of_metrics_has_fewer_samples_than_the_monitor_takes() -> None:
    monitor = yaml.safe_load((K8S / "components/operator/podmonitor.yaml").read_text())
    assert monitor["spec"]["sampleLimit"] == _SAMPLES
    metrics = Metrics()
    for domain in (f"d{number}" for number in range(300)):
        metrics.label(domain)
        for status in (200, 400, 404, 422, 429, 503, 504):
            metrics.answered(domain, status, 0.01)
    samples = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    assert 200 * 17 < len(samples) < _SAMPLES / 2

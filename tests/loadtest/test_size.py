"""Sizes beside calculations by hand, from reports with round figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.size import Asked, Fleet, Measured, SizeError

FIGURES = Path("docs/figures")


def measured() -> Measured:
    """A core answers 4,000 requests/s of 100 candidates and 1,000 of 500; four workers keep p99 up to 0.6."""
    busy = {"100": {"rps_busy": 4000.0}, "500": {"rps_busy": 1000.0}}
    forms = {
        "user": {
            "pack_bytes": 20_000,
            "redis_bytes": 22_000_000,
            "resident": 1000,
            "resident_bytes": 19_000_000,
            "process_mb": 200.0,
        },
        "sparse": {
            "pack_bytes": 25_000,
            "redis_bytes": 26_000_000,
            "resident": 1000,
            "resident_bytes": 100_000_000,
            "process_mb": 250.0,
        },
    }
    reports: dict[str, Any] = {
        "bench": {"http": {"json": busy}, "size": {"model": {"hidden": [256, 128], "dim": 16}}},
        "loadtest-scaling": {
            "scaling": {"1": {"share_of_saturated": 0.5}, "4": {"share_of_saturated": 0.6}},
        },
        "bench-domains": {"items": 20_000, "forms": forms},
        "bench-exposures": {"log": {"rows": 10, "items": 1000, "bytes": 10_000}},
    }
    return Measured(reports)


def fleet(**changes: Any) -> Fleet:
    return Fleet(
        Asked(**{"candidates": 300, "requests": 64_000, "domains": 100, "items": 20_000} | changes),
        measured(),
    )


def test_between_two_sizes_time_is_a_straight_line() -> None:
    # 250 us and 1,000 us: half way between, 625 us.
    assert measured().busy(300) == pytest.approx(1600)
    assert measured().busy(100) == pytest.approx(4000)


def test_cores_keep_p99_with_a_zone_less() -> None:
    found = fleet()
    # 0.6 of 1,600 keeps p99, and two zones of three must take all: 640 a core, 100 cores, 25 pods; 9 a zone.
    assert found.load == pytest.approx(0.4)
    assert found.per_core == pytest.approx(640)
    assert (found.pods, found.cores) == (27, 108)
    left = found.pods * 2 // 3 * found.asked.workers
    assert 64_000 / left <= 0.6 * 1600


def test_more_zones_need_fewer_cores() -> None:
    assert fleet(zones=2).load == pytest.approx(0.3)
    assert fleet(zones=6).load == pytest.approx(0.5)
    assert fleet(zones=6).cores < fleet().cores < fleet(zones=2).cores


def test_a_pods_memory_has_packs_and_items_once_and_what_each_worker_has() -> None:
    # Half an item table's row: (256 + 16 + 1) floats; with its id and the rows of seven fields 1,128 bytes.
    private = max(200 * 2**20 - 19_000_000, 250 * 2**20 - 100_000_000)
    assert fleet().memory == pytest.approx(100 * 100_000 + 20_000 * 1128 + 4 * private)


@pytest.mark.parametrize(
    ("form", "sent", "resident"), [("sparse", 25_000 + 4_000, 100_000 + 40_000), ("user", 20_000, 19_000)]
)
def test_packs_grow_with_items_where_items_have_weights_in_them(
    form: str, sent: float, resident: float
) -> None:
    # 10,000 items more: 500 weights and rows of 8 bytes in a sparse pack, 4 bytes each in memory.
    found = measured().pack(form, 30_000)
    assert (found.sent, found.resident) == pytest.approx((sent, resident))


def test_redis_keeps_versions_and_item_tables_and_sends_packs_to_each_worker() -> None:
    found = fleet()
    assert found.redis_memory == pytest.approx(26_000 * 100 * 6 + 4 * 20_000 * 1128)
    assert found.redis_start == pytest.approx(25_000 * 100 * 108)
    assert fleet(promotions=86_400).redis_steady == pytest.approx(25_000 * 108)


def test_the_log_has_eight_bytes_an_item_and_the_rest_of_a_row() -> None:
    # 10,000 bytes, 8,000 of them of 1,000 items: 200 a row.
    assert measured().log_bytes(300) == pytest.approx(200 + 8 * 300)
    assert fleet().log_day == pytest.approx(2600 * 64_000 * 86_400)
    assert fleet(exposures=False).log_day == 0


def test_traffic_is_what_bodies_have() -> None:
    comes, goes = fleet().traffic
    assert comes == pytest.approx(64_000 * (226 + 6.44 * 300))
    assert goes == pytest.approx(64_000 * (421 + 25.56 * 300))


def test_what_was_not_measured_is_refused() -> None:
    with pytest.raises(SizeError, match="from 100 to 500 candidates"):
        measured().busy(501)
    with pytest.raises(SizeError, match="packs are"):
        measured().pack("compressed", 20_000)
    with pytest.raises(SizeError, match="two at least"):
        _ = fleet(zones=1).load
    with pytest.raises(SizeError, match="No such file"):
        Measured.load(Path("nowhere"))


def test_packs_of_more_items_are_as_large_as_those_that_were_measured_once() -> None:
    """docs/domains.md has them with 200,000 items, which the report was not made with."""
    page = " ".join(Path("docs/domains.md").read_text().split())
    found = Measured.load(FIGURES).pack("sparse", 200_000)
    assert "97,459 bytes a pack in Redis" in page
    assert found.kept == pytest.approx(97_459, rel=0.01)
    assert "a pack has 0.83 MB resident" in page
    assert found.resident == pytest.approx(0.83e6, rel=0.01)


def test_the_command_prints_the_table() -> None:
    given = ["size", "--requests", "1000000", "--candidates", "200", "--json"]
    answer = CliRunner().invoke(app, given)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout) == Fleet(Asked(), Measured.load(FIGURES)).figures()

"""The exposure log: what reaches the disk, and what a crash takes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from pyarrow import parquet

from loadtest.redis_server import RedisServer
from service import exposure_parts, exposures
from service.contract.errors import MdctrError, SettingsError
from service.contract.exposure import EXPOSURE, batches, read
from service.exposure_parts import Parts, compact, left_behind
from service.exposure_stream import KEY, ExposureStream
from service.exposures import Exposure, ExposureLog, Happened
from service.runtime import require_exposures
from service.settings import Settings
from service.telemetry import Metrics
from tests.service.waiting import eventually


def exposure(at: int, **changes) -> Exposure:
    row = Exposure(
        request_id=f"r{at}",
        time=1e9 + at,
        unit=f"u{at % 7}",
        experiment="trial",
        arm="ab"[at % 2],
        domain="books",
        bundle="tiny",
        pack="0" * 16,
        propensity=0.5,
        status=200,
        ms=1.5,
        pack_domain=None,
        items=None,
        request=None,
        shadow_pack=None,
        ids=[at, at + 1],
        scores=np.array([0.25, 0.125]),
    )
    return row._replace(**changes)


def opened(folder: Path, metrics: Metrics | None = None, **changes) -> ExposureLog:
    options = {"part_seconds": 600.0, "part_bytes": 10**9, "most": 10**6, **changes}
    return ExposureLog(folder, metrics or Metrics(), **options)


def dropped(metrics: Metrics, reason: str) -> float:
    return metrics.registry.get_sample_value("mdctr_exposures_dropped_total", {"reason": reason}) or 0.0


def test_rows_come_back_as_they_were_added(tmp_path):
    with closing(opened(tmp_path)) as log:
        log.add(exposure(1, request=b"{}", pack_domain="_general", items="1" * 16))
        log.add(exposure(2, experiment=None, arm=None, propensity=None, ids=np.array([3, 4])))
        log.add(
            exposure(
                3,
                status=504,
                ids=[],
                scores=np.zeros(0),
                pack=None,
                shadow_pack="2" * 16,
                shadow_scores=np.array([0.5]),
            )
        )
        log.tell([("r1", "2", 5.0, "click"), ("r1", "1", 4.0, "shown")])
    found = read(tmp_path)
    assert found.cut == ()
    first, second, third = found.exposures.to_pylist()
    assert first == {
        "request_id": "r1",
        "time": 1e9 + 1,
        "unit": "u1",
        "experiment": "trial",
        "arm": "b",
        "domain": "books",
        "bundle": "tiny",
        "pack": "0" * 16,
        "ids": ["1", "2"],
        "scores": [0.25, 0.125],
        "propensity": 0.5,
        "status": 200,
        "ms": 1.5,
        "pack_domain": "_general",
        "items": "1" * 16,
        "shadow_pack": None,
        "shadow_scores": None,
        "request": b"{}",
    }
    assert (third["shadow_pack"], third["shadow_scores"]) == ("2" * 16, [0.5])
    assert (second["arm"], second["propensity"], second["ids"]) == (None, None, ["3", "4"])
    assert (third["status"], third["ids"], third["scores"]) == (504, [], [])
    assert found.clicks.to_pylist() == [{"request_id": "r1", "item": "2", "time": 5.0}]
    assert found.shown.to_pylist() == [{"request_id": "r1", "item": "1", "time": 4.0}]


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([7, 2**31 - 1], pa.int32()),
        ([7, 2**31], pa.int64()),
        (["7", "é"], pa.string()),
    ],
)
def test_ids_take_the_room_that_they_need(tmp_path, ids, kind):
    with closing(opened(tmp_path)) as log:
        log.add(exposure(0, ids=ids))
    (path,) = tmp_path.glob("*.parquet")
    file = parquet.ParquetFile(path)
    assert file.schema_arrow.field("ids").type.value_type == kind
    assert file.schema_arrow.field("scores").type.value_type == pa.float32()
    columns = {file.metadata.row_group(0).column(at).path_in_schema: at for at in range(18)}
    assert "RLE_DICTIONARY" not in file.metadata.row_group(0).column(columns["ids.list.element"]).encodings
    assert read(tmp_path).exposures["ids"].to_pylist() == [[str(value) for value in ids]]


def test_rows_are_on_disk_within_a_second_or_so_and_can_be_read_there(tmp_path):
    with closing(opened(tmp_path)) as log:
        log.add(exposure(1))
        log.add(Happened("r1", "1", 3.0, "click"))
        eventually(lambda: read(tmp_path).clicks.num_rows, within=5)
        assert {path.suffix for path in tmp_path.iterdir()} == {".arrow"}
        log.add(exposure(2))
        eventually(lambda: read(tmp_path).exposures.num_rows == 2, within=5)
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert read(tmp_path).exposures.num_rows == 2


def test_a_part_that_is_old_or_large_becomes_parquet_while_another_is_written(tmp_path):
    with closing(opened(tmp_path, part_bytes=1)) as log:
        log.add(exposure(1))
        eventually(lambda: [*tmp_path.glob("*.parquet")], within=5)
        log.add(exposure(2))
        eventually(lambda: len([*tmp_path.glob("*.parquet")]) == 2, within=5)
    parts = Parts(tmp_path / "old", seconds=0.0, nbytes=10**9)
    parts.write(pa.RecordBatch.from_pylist([{"request_id": "r", "item": "i", "time": 1.0, "kind": None}]))
    (path,) = parts.ripe()
    compact(path)
    assert read(tmp_path / "old").clicks.num_rows == 1


def test_a_full_queue_drops_and_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(exposures, "_SECOND", 60.0)
    metrics = Metrics()
    with closing(opened(tmp_path, metrics, most=6)) as log:
        for at in range(5):  # of three each
            log.add(exposure(at))
        log.add(Happened("r0", "0", 1.0, "click"))
    assert dropped(metrics, "full") == 4
    assert read(tmp_path).exposures.num_rows == 2


def test_a_row_that_is_none_takes_no_other_with_it(tmp_path):
    metrics = Metrics()
    with closing(opened(tmp_path, metrics)) as log:
        log.add(exposure(1))
        log.add(exposure(2, ids=[2**80, 1]))
        log.add(exposure(3, unit="\ud800"))
        log.add(exposure(4))
    assert read(tmp_path).exposures["request_id"].to_pylist() == ["r1", "r4"]
    assert dropped(metrics, "failed") == 2


def test_a_disk_that_takes_nothing_ends_nothing(tmp_path, monkeypatch):
    metrics = Metrics()
    with closing(opened(tmp_path, metrics)) as log:
        with monkeypatch.context() as full:

            def refuse(self, batch):
                raise OSError(28, "No space left on device")

            full.setattr(Parts, "write", refuse)
            log.add(exposure(1))
            eventually(lambda: dropped(metrics, "failed"), within=5)
        log.add(exposure(2))
    assert read(tmp_path).exposures["request_id"].to_pylist() == ["r2"]


def test_half_a_batch_ends_its_part_and_not_the_log(tmp_path):
    class Broken:
        def write_batch(self, batch):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    batch = pa.RecordBatch.from_pylist([{"request_id": "r", "item": "i", "time": 1.0, "kind": "click"}])
    parts = Parts(tmp_path, 600, 10**9)
    parts.write(batch)
    (part,) = parts._open.values()
    parts._open[batch.schema] = exposure_parts._Part(part.path, part.lock, part.file, Broken(), part.until)
    with pytest.raises(OSError, match="No space"):
        parts.write(batch)
    parts.write(batch)
    for path in [*parts.close(), *left_behind(tmp_path)]:
        compact(path)
    assert read(tmp_path).clicks.num_rows == 2
    assert not [*tmp_path.glob("*.arrow")]


def test_a_stream_beside_its_parquet_file_is_not_read_twice(tmp_path):
    with closing(opened(tmp_path)) as log:
        log.add(exposure(1))
    (whole,) = tmp_path.glob("*.parquet")
    with pa.ipc.new_stream(whole.with_suffix(".arrow"), EXPOSURE) as out:
        for batch in batches(whole):
            out.write_batch(batch.select(EXPOSURE.names).cast(EXPOSURE))
    assert read(tmp_path).exposures.num_rows == 1
    compact(whole.with_suffix(".arrow"))  # killed between making the one and removing the other
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]


WRITER = """
import sys, time
from pathlib import Path
from service.telemetry import Metrics
from service.exposures import ExposureLog
from tests.service.test_exposures import exposure
log = ExposureLog(Path(sys.argv[1]), Metrics(), part_seconds=1.5, part_bytes=10**9, most=10**7)
at = 0
while True:
    for _ in range(20):
        log.add(exposure(at, ids=[*range(at, at + 50)], scores=exposure(at).scores.repeat(25)))
        at += 1
    print(at, time.time(), flush=True)
    time.sleep(0.01)
"""


def test_a_killed_writer_loses_no_more_than_its_last_second(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    added = []
    began = time.monotonic()
    for line in writer.stdout:
        count, when = line.split()
        added.append((int(count), float(when)))
        if time.monotonic() > began + 3.2:
            break
    writer.send_signal(signal.SIGKILL)
    added += [(int(line.split()[0]), float(line.split()[1])) for line in writer.stdout if "\n" in line]
    writer.wait()
    writer.stdout.close()
    killed = added[-1][1]
    found = read(tmp_path)
    there = sorted(int(name[1:]) for name in found.exposures["request_id"].to_pylist())
    assert there == [*range(len(there))]
    # A second, and half of one for a machine that has other things to do.
    assert len(there) >= max(count for count, when in added if when < killed - 1.5)
    assert any(path.suffix == ".arrow" for path in tmp_path.iterdir())
    with closing(opened(tmp_path)):
        pass
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    for path in tmp_path.iterdir():
        parquet.read_table(path)
    assert read(tmp_path).exposures.num_rows == len(there)


def test_what_is_written_by_another_is_let_be(tmp_path):
    with closing(opened(tmp_path)) as one:
        one.add(exposure(1))
        eventually(lambda: read(tmp_path).exposures.num_rows, within=5)
        with closing(opened(tmp_path)) as other:
            other.add(exposure(2))
        assert {path.suffix for path in tmp_path.iterdir()} == {".arrow", ".parquet"}
        assert read(tmp_path).exposures.num_rows == 2


def test_a_stream_in_redis_has_the_same_rows(tmp_path):
    metrics = Metrics()

    async def send(url):
        stream = ExposureStream(url, 100, metrics)
        log = opened(tmp_path / "log", metrics, also=stream)
        log.add(exposure(1))
        log.tell([("r1", "2", 5.0, "click")])
        await asyncio.to_thread(log.close)
        await stream.close()

    with closing(RedisServer()) as server:
        server.start()
        asyncio.run(send(server.url))
        with closing(redis.Redis.from_url(server.url)) as client:
            entries: list[Any] = [*(client.xrange(KEY) or ())]
    (tmp_path / "sent").mkdir()
    for at, (_, fields) in enumerate(entries):
        (tmp_path / "sent" / f"{at}.arrow").write_bytes(fields[b"arrow"])
    sent, log = read(tmp_path / "sent"), read(tmp_path / "log")
    assert sent.exposures.equals(log.exposures)
    assert sent.clicks.equals(log.clicks)
    assert (log.exposures.num_rows, log.clicks.num_rows) == (1, 1)
    assert dropped(metrics, "stream") == 0
    asyncio.run(send(server.url))  # nobody answers there any more
    assert dropped(metrics, "stream") == 2
    assert read(tmp_path / "log").exposures.num_rows == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exposures_stream": "redis://127.0.0.1"}, "MDCTR_EXPOSURES, which is not set"),
        ({"exposures": Path("/proc/no")}, "/proc/no: "),
        ({"exposures": Path("log"), "exposures_stream": "http://x"}, "not the URL of a Redis"),
    ],
)
def test_a_log_that_cannot_be_written_is_one_line_at_the_start(tmp_path, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MdctrError, match=said):
        require_exposures(Settings(**settings))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("service.runtime.find_spec", lambda name: None)
    require_exposures(Settings())
    with pytest.raises(SettingsError, match=r"needs pyarrow: pip install 'mdctr\[exposures\]'"):
        require_exposures(Settings(exposures=tmp_path))


def test_events_of_an_answer_are_logged_with_users_and_without(start, tmp_path):
    service = start(exposures=tmp_path / "log")
    event = {"user": 1, "domain": "books", "item": 10, "kind": "click", "time": 100.0}
    told = [{**event, "request_id": "r-1"}, {**event, "request_id": "r-1", "kind": "shown"}, event]
    assert service.client.post("/v1/events", json={"events": told}).status_code == 202
    eventually(lambda: read(tmp_path / "log").clicks.num_rows, within=5)
    found = read(tmp_path / "log")
    assert found.clicks.to_pylist() == [{"request_id": "r-1", "item": "10", "time": 100.0}]
    assert found.shown.num_rows == 1


def test_the_log_has_the_best_in_the_order_answered(start, tmp_path):
    service = start(exposures=tmp_path / "log")
    answer = service.rank(ids=[13, 10, 12, 11], top_k=3).json()
    eventually(lambda: read(tmp_path / "log").exposures.num_rows, within=5)
    (row,) = read(tmp_path / "log").exposures.to_pylist()
    assert row["ids"] == [str(each) for each in answer["ids"]]
    assert row["scores"] == np.float32(answer["probabilities"]).tolist()


def test_a_part_of_many_pieces_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(exposure_parts, "_ROW_GROUP", 1000)
    with closing(opened(tmp_path)) as log:
        for at in range(50):
            log.add(exposure(at, ids=np.arange(at), scores=np.full(at, 0.5)))
    (path,) = tmp_path.glob("*.parquet")
    assert parquet.ParquetFile(path).metadata.num_row_groups > 3
    found = read(tmp_path).exposures.sort_by("time")
    assert found["request_id"].to_pylist() == [f"r{at}" for at in range(50)]
    assert found["ids"].to_pylist() == [[str(each) for each in range(at)] for at in range(50)]

"""Files of exposures and clicks, whole and cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import compute as pc
from pyarrow import parquet

from service.contract import exposure
from service.contract.exposure import CLICK, EXPOSURE, Kept, LogError, read


def exposures(first: int, count: int, ids: pa.Array | None = None) -> pa.RecordBatch:
    at = range(first, first + count)
    columns = {
        "request_id": [f"r{i}" for i in at],
        "time": [1e9 + i for i in at],
        "unit": [f"u{i % 3}" for i in at],
        "experiment": [None if i % 5 == 4 else "new" for i in at],
        "arm": [None if i % 5 == 4 else "ab"[i % 2] for i in at],
        "domain": ["books"] * count,
        "bundle": ["bundle"] * count,
        "pack": ["0" * 16] * count,
        "scores": pa.array([[0.1, 0.2]] * count, pa.list_(pa.float32())),
    }
    return pa.record_batch({**columns, "ids": ids or pa.array([["7", "x"]] * count)})


def stream(path: Path, *batches: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(path, batches[0].schema) as out:
        for batch in batches:
            out.write_batch(batch)


def test_both_formats_and_both_kinds_are_read_from_any_depth(tmp_path: Path) -> None:
    (tmp_path / "worker-1").mkdir()
    stream(tmp_path / "worker-1" / "0.arrow", exposures(0, 4))
    numbers = pa.array([[7, 8]] * 2, pa.list_(pa.int32()))
    parquet.write_table(pa.Table.from_batches([exposures(4, 2, numbers)]), tmp_path / "0.parquet")
    stream(tmp_path / "clicks.arrow", pa.record_batch({"request_id": ["r0"], "item": [7], "time": [1e9]}))
    (tmp_path / "notes.txt").write_text("not of the log")
    log = read(tmp_path)
    assert log.exposures.schema == EXPOSURE
    assert log.clicks.schema == log.shown.schema == CLICK
    assert log.exposures["status"].null_count == 6
    assert sorted(log.exposures["request_id"].to_pylist()) == [f"r{i}" for i in range(6)]
    assert log.exposures["ids"].to_pylist().count(["7", "8"]) == 2
    assert log.clicks.to_pylist() == [{"request_id": "r0", "item": "7", "time": 1e9}]
    assert log.cut == ()


def test_what_was_shown_is_no_click(tmp_path: Path) -> None:
    kinds = ["click", "shown", None]
    columns = {"request_id": ["r0"] * 3, "item": ["a", "b", "c"], "time": [1.0, 2.0, 3.0], "kind": kinds}
    stream(tmp_path / "events.arrow", pa.record_batch(columns))
    log = read(tmp_path)
    assert log.clicks["item"].to_pylist() == ["a", "c"]
    assert log.shown["item"].to_pylist() == ["b"]


def test_a_stream_cut_off_anywhere_gives_its_whole_batches(tmp_path: Path) -> None:
    whole = tmp_path / "whole.arrow"
    stream(whole, *(exposures(10 * i, 10) for i in range(4)))
    data = whole.read_bytes()
    whole.unlink()
    lengths = set()
    for size in (*range(0, len(data), 97), len(data) - 1, len(data)):
        (tmp_path / "cut.arrow").write_bytes(data[:size])
        log = read(tmp_path)
        rows = log.exposures.num_rows
        assert rows % 10 == 0
        assert log.exposures["request_id"].to_pylist() == [f"r{i}" for i in range(rows)]
        lengths.add(rows)
    assert lengths == {0, 10, 20, 30, 40}


def test_a_parquet_file_without_its_end_is_named_and_left_out(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_batches([exposures(0, 5)]), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-20])
    (tmp_path / "c.arrow").write_bytes(b"")
    log = read(tmp_path)
    assert log.exposures.num_rows == 5
    assert log.cut == ("b.parquet", "c.arrow")


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="not a folder"):
        read(tmp_path / "none")
    parquet.write_table(pa.table({"ids": [["a"]]}), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet has no column arm"):
        read(tmp_path)
    time = pa.table({"request_id": ["r"], "item": ["i"], "time": ["noon"]})
    parquet.write_table(time, tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet: .*noon"):
        read(tmp_path)


def test_what_was_read_of_closed_parts_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    honest = exposure.batches

    def counted(path: Path) -> Iterator[pa.RecordBatch]:
        opened.append(path.name)
        return honest(path)

    monkeypatch.setattr(exposure, "batches", counted)
    clicks = pa.record_batch({"request_id": ["r0"], "item": ["7"], "time": [1e9]})
    asked = pa.array([b"{}"] * 10, pa.binary())
    parquet.write_table(
        pa.Table.from_batches([exposures(0, 10).append_column("request", asked)]), tmp_path / "0.parquet"
    )
    parquet.write_table(pa.Table.from_batches([clicks]), tmp_path / "1.parquet")
    stream(tmp_path / "2.arrow", exposures(10, 5))

    def same(kept: Kept) -> bool:
        whole, found = read(tmp_path), read(tmp_path, kept)
        needed = whole.exposures.filter(pc.equal(whole.exposures["experiment"], "new"))
        mine = found.exposures.filter(pc.equal(found.exposures["experiment"], "new"))
        names = [name for name in EXPOSURE.names if name != "request"]
        assert found.exposures["request"].null_count == found.exposures.num_rows
        return bool(mine.select(names).equals(needed.select(names)) and found.clicks.equals(whole.clicks))

    kept = Kept({"new"})
    assert same(kept)
    opened.clear()
    found = read(tmp_path, kept)
    assert opened == ["2.arrow"]
    assert found.exposures.num_rows == 8 + 5  # those in no experiment are left out of what is kept
    (tmp_path / "2.arrow").unlink()
    parquet.write_table(pa.Table.from_batches([exposures(10, 5)]), tmp_path / "2.parquet")
    parquet.write_table(pa.Table.from_batches([exposures(20, 9)]), tmp_path / "0.parquet")
    (tmp_path / "1.parquet").unlink()
    opened.clear()
    assert read(tmp_path, kept).clicks.num_rows == 0
    assert opened == ["0.parquet", "2.parquet"]
    assert same(kept)
    assert read(tmp_path, Kept(())).exposures.num_rows == 0

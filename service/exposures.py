"""`ExposureLog`: what was answered to whom, and what became of it, on its way to disk.

Whoever answers a request adds a row and goes on: that is an append to a queue, of arrays that the answer is
made of. A thread of its own turns what is there into Arrow once a second, a column at a time, and writes it,
so a crash loses a second at most. A queue that is full drops rows, and counts them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from service.contract.exposure import EVENT, EXPOSURE
from service.exposure_parts import Parts, compact, left_behind
from service.question import Question, to_bytes
from service.telemetry import Metrics

_SECOND = 1.0
_INT32 = -(2**31), 2**31 - 1
_LISTS = {"ids", "scores", "shadow_scores"}
_PLAIN = [field for field in EXPOSURE if field.name not in _LISTS]

log = structlog.get_logger()


class Exposure(NamedTuple):
    """One row; `service.contract.exposure` says what the columns mean."""

    request_id: str
    time: float
    unit: str
    experiment: str | None
    arm: str | None
    domain: str
    bundle: str
    pack: str | None
    propensity: float | None
    status: int
    ms: float
    pack_domain: str | None
    items: str | None
    request: Question | bytes | None
    shadow_pack: str | None
    ids: Sequence[Any] | npt.NDArray[np.integer[Any]]
    """(B,) ints or strings, of one kind in all rows. Ints are best an array, which nobody changes: a list of
    them would keep an object for each until it is written."""
    scores: npt.NDArray[np.float64]
    """(B,)"""
    shadow_scores: npt.NDArray[np.float64] | None = None
    """(B,)"""


class Happened(NamedTuple):
    """One event that belongs to an answer."""

    request_id: str
    item: str
    time: float
    kind: Literal["click", "shown"]


class ExposureLog:
    """A queue and its thread. `add` belongs to one thread, such as an event loop's."""

    def __init__(
        self,
        folder: Path,
        metrics: Metrics,
        *,
        part_seconds: float,
        part_bytes: int,
        most: int,
        also: Callable[[bytes], None] | None = None,
    ) -> None:
        """Begin to write.

        Args:
            folder: where parts are written, by all workers.
            metrics: where rows are counted.
            part_seconds: after which a part becomes a Parquet file.
            part_bytes: with which a part becomes one.
            most: candidates that may wait to be written; a row counts as one more.
            also: called with each second's rows, as an Arrow stream; it must not block, and its errors are
                logged.

        Raises:
            OSError: nothing can be written there.
        """
        self._parts = Parts(folder, part_seconds, part_bytes)
        self._folder, self._metrics, self._most, self._also = folder, metrics, most, also
        self._rows: deque[Exposure | Happened] = deque()
        # Each is written by one thread alone, so neither needs a lock.
        self._added = self._taken = 0
        self._stop = threading.Event()
        self._compactor = ThreadPoolExecutor(1, "exposures to Parquet")
        self._compact(left_behind(folder))
        self._writer = threading.Thread(target=self._write, name="write exposures", daemon=True)
        self._writer.start()

    def add(self, row: Exposure | Happened) -> None:
        """Take a row, or drop it where too many wait."""
        size = len(row.ids) + 1 if isinstance(row, Exposure) else 1
        if self._added - self._taken + size > self._most:
            self._metrics.exposures_dropped.labels("full").inc()
            return
        self._added += size
        self._rows.append(row)

    def tell(self, events: Iterable[tuple[str, str, float, Literal["click", "shown"]]]) -> None:
        """Take events, or drop them: request, item, time and kind of each."""
        for event in events:
            self.add(Happened(*event))

    def close(self) -> None:
        """Write what waits, and make Parquet of all parts."""
        self._stop.set()
        self._writer.join()
        self._compactor.shutdown()

    def _write(self) -> None:
        while not self._stop.wait(_SECOND):
            self._flush()
            self._compact(self._parts.ripe())
        self._flush()
        self._compact(self._parts.close())

    def _flush(self) -> None:
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        exposures = [row for row in rows if isinstance(row, Exposure)]
        self._taken += len(rows) + sum(len(row.ids) for row in exposures)
        happened = [row for row in rows if isinstance(row, Happened)]
        for some, batch in ((exposures, _exposures), (happened, _events)):
            if some:
                self._keep(some, batch)

    def _keep(self, rows: list[Any], batch_of: Callable[[list[Any]], pa.RecordBatch]) -> None:
        try:
            try:
                batch = batch_of(rows)
            except Exception:  # noqa: BLE001 - then one of them is at fault, and the others are not
                rows = self._sound(rows, batch_of)
                batch = batch_of(rows)
            self._parts.write(batch)
        except Exception as error:  # noqa: BLE001 - a full disk, or a row that is none, ends no service
            self._metrics.exposures_dropped.labels("failed").inc(len(rows))
            log.warning("exposures are lost", rows=len(rows), reason=f"{type(error).__name__}: {error}")
            return
        self._metrics.exposures_written.inc(len(rows))
        if self._also is not None:
            try:
                self._also(stream(batch))
            except Exception as error:  # noqa: BLE001 - the files are what counts
                log.warning("exposures are not sent", reason=f"{type(error).__name__}: {error}")

    def _sound(self, rows: list[Any], batch_of: Callable[[list[Any]], pa.RecordBatch]) -> list[Any]:
        """Those rows of which a batch can be made."""
        found = []
        for row in rows:
            try:
                batch_of([row])
                found.append(row)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it
                self._metrics.exposures_dropped.labels("failed").inc()
                log.warning("an exposure is lost", reason=type(error).__name__)
        return found

    def _compact(self, streams: Iterable[Path]) -> None:
        """Elsewhere than where rows are written, which must not wait for it."""
        for path in streams:
            self._compactor.submit(_compacted, path)


def stream(batch: pa.RecordBatch) -> bytes:
    """Rows as an Arrow stream of their own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _compacted(path: Path) -> None:
    try:
        compact(path)
    except Exception as error:  # noqa: BLE001 - the stream stays, and whoever starts next tries again
        log.warning("exposures stay a stream", file=path.name, reason=f"{type(error).__name__}: {error}")


def _exposures(rows: list[Exposure]) -> pa.RecordBatch:
    given = dict(zip(Exposure._fields, zip(*rows, strict=True), strict=True))
    # What was asked is written out here and not where it is answered.
    given["request"] = tuple(
        to_bytes(each) if isinstance(each, Question) else each for each in given["request"]
    )
    columns = {field.name: _column(given[field.name], field.type) for field in _PLAIN}
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([*map(len, given["ids"])], out=offsets[1:])
    scores = np.concatenate(given["scores"], dtype=np.float32, casting="same_kind")
    columns["ids"] = pa.ListArray.from_arrays(offsets, _ids(given["ids"]))
    columns["scores"] = pa.ListArray.from_arrays(offsets, scores)
    columns["shadow_scores"] = pa.array(given["shadow_scores"], pa.list_(pa.float32()))
    return pa.RecordBatch.from_pydict(columns)


def _column(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    """One value a row. Most columns have the same in all of them, which takes no look at each."""
    if values.count(values[0]) == len(values):
        return pa.repeat(pa.scalar(values[0], kind), len(values))
    return pa.array(values, kind)


def _ids(rows: tuple[Sequence[Any] | npt.NDArray[np.integer[Any]], ...]) -> pa.Array:
    """All rows' ids, one after the other: int32 where they fit, else int64; or strings."""
    first = next((ids[0] for ids in rows if len(ids)), "")
    if isinstance(first, str):
        return pa.array([*chain.from_iterable(rows)], pa.string())
    numbers = np.concatenate([np.asarray(ids) for ids in rows if len(ids)])
    low, high = _INT32
    if numbers.dtype != np.int32 and low <= numbers.min() and numbers.max() <= high:
        numbers = numbers.astype(np.int32)
    return pa.array(numbers)


def _events(rows: list[Happened]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), EVENT, strict=True)],
        schema=EVENT,
    )

"""`Parts`: the files of a worker's exposure log, written as Arrow streams and kept as Parquet.

A stream can be read while it is written and after its writer was killed, up to the last batch that it has
whole; Parquet only when it is closed, but is smaller to read. So a part is a stream first, and becomes a
Parquet file when it is large or old enough. A writer holds a lock on its stream, which ends with the process
however that ends: what a killed one left is finished by whoever finds it.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import structlog
from pyarrow import parquet

from service.contract.exposure import batches

_ROW_GROUP = 2_000_000
"""Bytes. A larger one has memory touched for the first time, which takes longer than writing it."""

log = structlog.get_logger()


@dataclass(frozen=True)
class _Part:
    """A stream that is written."""

    path: Path
    lock: int
    """Of the file; closing it lets go."""
    file: pa.NativeFile
    stream: pa.RecordBatchWriter
    until: float
    """On the monotonic clock, when it is old enough."""

    def close(self) -> None:
        """End the stream; it can be compacted then."""
        try:
            self.stream.close()
            self.file.close()
        finally:
            os.close(self.lock)


class Parts:
    """The parts that one writer has open, one for each schema. It belongs to one thread."""

    def __init__(self, folder: Path, seconds: float, nbytes: int) -> None:
        """No part yet; what a killed writer left is finished.

        Args:
            folder: of all parts, those of other workers, too.
            seconds: after which a part is closed.
            nbytes: with which a part is closed.

        Raises:
            OSError: nothing can be written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._seconds, self._most = folder, seconds, nbytes
        self._open: dict[pa.Schema, _Part] = {}
        # No two writers ever have one name, and names are in the order of time.
        self._writer, self._count = f"{int(time.time()):011d}-{uuid.uuid4().hex[:12]}", 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows to the part of their schema; they survive this process from now on.

        Raises:
            OSError: they were not written, or not all.
        """
        part = self._open.get(batch.schema) or self._begin(batch.schema)
        try:
            part.stream.write_batch(batch)
        except BaseException:
            # After half a batch nothing can be added to a stream, so the next rows get another.
            del self._open[batch.schema]
            with suppress(OSError, pa.ArrowInvalid):
                part.close()
            raise

    def ripe(self) -> list[Path]:
        """Close parts that are old or large enough; the streams that can be compacted now."""
        now = time.monotonic()
        due = [
            schema
            for schema, part in self._open.items()
            if now >= part.until or part.file.tell() >= self._most
        ]
        return [self._end(schema) for schema in due]

    def close(self) -> list[Path]:
        """Close all parts; the streams that can be compacted now."""
        return [self._end(schema) for schema in [*self._open]]

    def _begin(self, schema: pa.Schema) -> _Part:
        path = self._folder / f"{self._writer}-{self._count:06d}.arrow"
        self._count += 1
        # Under another name until it is locked, or somebody would finish it at once.
        hidden = path.with_suffix(".new")
        lock = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = pa.OSFile(str(hidden), "wb")
            part = _Part(path, lock, file, pa.ipc.new_stream(file, schema), time.monotonic() + self._seconds)
            hidden.rename(path)
        except BaseException:
            os.close(lock)
            raise
        self._open[schema] = part
        return part

    def _end(self, schema: pa.Schema) -> Path:
        part = self._open.pop(schema)
        part.close()
        return part.path


def left_behind(folder: Path) -> list[Path]:
    """Streams that nobody writes any more."""
    return [path for path in sorted(folder.glob("*.arrow")) if _is_free(path)]


def compact(path: Path) -> None:
    """Make a Parquet file of a stream, as far as it is whole, and remove the stream.

    At every moment there is one of them that can be read.

    Raises:
        OSError: it cannot be written.
    """
    with _held(path) as mine:
        if not mine:
            return
        target, made = path.with_suffix(".parquet"), path.with_suffix(".tmp")
        if not target.exists() and _rewritten(path, made):
            made.replace(target)
        path.unlink()


def _rewritten(path: Path, made: Path) -> bool:
    """Write a stream's whole batches as Parquet; whether there were any."""
    writer = None
    try:
        for table in _grouped(path):
            if writer is None:
                # Ids and scores hardly repeat, and what is not encoded is read and written fastest.
                writer = parquet.ParquetWriter(
                    made, table.schema, compression="none", use_dictionary=False, write_statistics=False
                )
            writer.write_table(table, max(1, len(table) * _ROW_GROUP // table.nbytes))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        return False
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return True


def _grouped(path: Path) -> Iterator[pa.Table]:
    """A stream's whole batches, in tables that are worth a row group."""
    group: list[pa.RecordBatch] = []
    try:
        for batch in batches(path):
            group.append(batch)
            if sum(each.nbytes for each in group) >= _ROW_GROUP:
                yield pa.Table.from_batches(group)
                group = []
    except (pa.ArrowInvalid, OSError):
        log.warning("a stream of exposures ends in the middle", file=path.name)
    if group:
        yield pa.Table.from_batches(group)


def _is_free(path: Path) -> bool:
    with _held(path) as mine:
        return mine


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether nobody else has the file; for the time of the block nobody will."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield path.exists()
    finally:
        os.close(handle)

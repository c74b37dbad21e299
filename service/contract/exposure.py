"""The exposure log: what was answered to whom, under which arm, and what was clicked of it.

A folder of `*.parquet` and `*.arrow` (IPC stream) files, at any depth. A file holds exposures, or clicks.

| exposure | type | |
| --- | --- | --- |
| request_id | string | of the answer; a request of experiments in two layers is two rows |
| time | float64 | seconds since 1970 |
| unit | string | what the experiment randomises: a user's id, or the request's |
| experiment, arm | string | null where the request was in none, or a tester forced it |
| domain | string | asked for |
| bundle, pack | string | versions that scored |
| ids | list of string | items in the order answered: the position is the index |
| scores | list of float32 | their probabilities, calibrated |
| propensity | float32 | the chance that the unit had of this arm, among those in the experiment |
| status | int32 | of the answer; one that is no 200 has no items |
| ms | float32 | from the request's arrival to its answer |
| pack_domain | string | whose pack scored, where that is not the domain asked for |
| items | string | version of the item table that was read; null for the bundle's own |
| shadow_pack | string | version that scored besides, without answering |
| shadow_scores | list of float32 | its probabilities of the same items; null where there are none |
| request | binary | what was asked, to score it again: JSON of `user`, `context`, `ids` and `items` |

| click | type | |
| --- | --- | --- |
| request_id | string | of the answer that the item was shown from |
| item | string | its id |
| time | float64 | seconds since 1970 |
| kind | string | `click` or `shown`; null is a click |

A log may lack `kind`, and of an exposure what comes after `scores`: they are read as null. Numbers are taken
as ids, too, and read as their text: 42 and "42" are one item. A stream beside a Parquet file of the same name
is what that was made of, and is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import parquet

from service.contract.errors import MdctrError

EXPOSURE = pa.schema(
    [
        ("request_id", pa.string()),
        ("time", pa.float64()),
        ("unit", pa.string()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("domain", pa.string()),
        ("bundle", pa.string()),
        ("pack", pa.string()),
        ("ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("propensity", pa.float32()),
        ("status", pa.int32()),
        ("ms", pa.float32()),
        ("pack_domain", pa.string()),
        ("items", pa.string()),
        ("shadow_pack", pa.string()),
        ("shadow_scores", pa.list_(pa.float32())),
        ("request", pa.binary()),
    ]
)
CLICK = pa.schema([("request_id", pa.string()), ("item", pa.string()), ("time", pa.float64())])
EVENT = CLICK.append(pa.field("kind", pa.string()))
_SHOWN = "shown"
_BULK = ("request", "shadow_scores")
"""Columns that nobody needs who only counts, and that are large."""
_MAY_LACK = {*EXPOSURE.names[EXPOSURE.get_field_index("scores") + 1 :], "kind"}


class LogError(MdctrError):
    """A log of exposures is missing, or a file in it is none."""


class Log(NamedTuple):
    """All that could be read of a folder."""

    exposures: pa.Table
    clicks: pa.Table
    cut: tuple[str, ...]
    """Files that end in the middle, whose whole batches alone were read."""
    shown: pa.Table
    """As clicks: items that a caller says were seen."""


class Kept:
    """Of Parquet files, which never change, what a reader needs who reads a log again and again."""

    def __init__(self, experiments: Collection[str]) -> None:
        """Nothing yet.

        Args:
            experiments: whose exposures are needed; others are left out, and what was asked of all.
        """
        self.experiments = frozenset(experiments)
        self._files: dict[Path, tuple[tuple[int, int], list[pa.RecordBatch]]] = {}

    def batches(self, path: Path) -> list[pa.RecordBatch]:
        """A file's batches, from memory if it was read before."""
        about = path.stat()
        mark = about.st_mtime_ns, about.st_size
        if path not in self._files or self._files[path][0] != mark:
            self._files[path] = mark, [self._thin(batch, path) for batch in batches(path)]
        return self._files[path][1]

    def forget(self, paths: Collection[Path]) -> None:
        """Let go of all files but these."""
        for path in self._files.keys() - {*paths}:
            del self._files[path]

    def _thin(self, batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
        kind = _kind(batch)
        whole = _as(kind, batch, path)
        if kind is EVENT:
            return whole
        thin = whole.filter(pc.is_in(whole["experiment"], pa.array([*self.experiments], pa.string())))
        for name in _BULK:
            empty = pa.nulls(len(thin), kind.field(name).type)
            thin = thin.set_column(kind.get_field_index(name), kind.field(name), empty)
        return thin


def read(folder: Path, kept: Kept | None = None) -> Log:
    """All exposures and clicks of a folder.

    A file that is still written, or whose writer was killed, is read as far as it is whole: a stream by its
    batches, a Parquet file not at all.

    Args:
        folder: the log.
        kept: from reading it before; the same is then given, but for exposures that it does not need.

    Raises:
        LogError: there is no such folder, or a file has other columns.
    """
    if not folder.is_dir():
        raise LogError(f"{folder} is not a folder of exposures")
    found: dict[pa.Schema, list[pa.RecordBatch]] = {EXPOSURE: [], EVENT: []}
    cut = []
    # Streams become Parquet files meanwhile: listed first, they are found as the one or the other.
    streams, tables = sorted(folder.rglob("*.arrow")), sorted(folder.rglob("*.parquet"))
    compacted = {path.with_suffix("") for path in tables}
    for path in [*tables, *(path for path in streams if path.with_suffix("") not in compacted)]:
        try:
            there = path if path.exists() else path.with_suffix(".parquet")
            again = kept is not None and there.suffix == ".parquet"
            for batch in kept.batches(there) if kept is not None and again else batches(there):
                kind = _kind(batch)
                found[kind].append(_as(kind, batch, path))
        except (pa.ArrowInvalid, OSError):
            cut.append(str(path.relative_to(folder)))
    if kept is not None:
        kept.forget([*tables, *(path.with_suffix(".parquet") for path in streams)])
    exposures, events = (pa.Table.from_batches(parts, kind) for kind, parts in found.items())
    seen = pc.fill_null(pc.equal(events["kind"], _SHOWN), False)
    clicks, shown = (events.filter(which).select(CLICK.names) for which in (pc.invert(seen), seen))
    return Log(exposures, clicks, tuple(cut), shown)


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """A file's batches; `ArrowInvalid` or `OSError` is raised where it breaks off."""
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    # Not mapped, though that is faster: a disk that cannot be read would end the process, and not the call.
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            batch.validate(full=True)
            yield batch


def _kind(batch: pa.RecordBatch) -> pa.Schema:
    return EXPOSURE if "ids" in batch.schema.names else EVENT


def _as(kind: pa.Schema, batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """The batch with a kind's columns and types; others are dropped."""
    missing = set(kind.names) - set(batch.schema.names)
    if needed := missing - _MAY_LACK:
        raise LogError(f"{path} has no column {', '.join(sorted(needed))}")
    for name in missing:
        batch = batch.append_column(name, pa.nulls(len(batch), kind.field(name).type))
    try:
        return batch.select(kind.names).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LogError(f"{path}: {error}") from error

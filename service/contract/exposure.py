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

| click | type | |
| --- | --- | --- |
| request_id | string | of the answer that the item was shown from |
| item | string | its id |
| time | float64 | seconds since 1970 |

Numbers are taken as ids, too, and read as their text: 42 and "42" are one item.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
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
    ]
)
CLICK = pa.schema([("request_id", pa.string()), ("item", pa.string()), ("time", pa.float64())])


class LogError(MdctrError):
    """A log of exposures is missing, or a file in it is none."""


class Log(NamedTuple):
    """All that could be read of a folder."""

    exposures: pa.Table
    clicks: pa.Table
    cut: tuple[str, ...]
    """Files that end in the middle, whose whole batches alone were read."""


def read(folder: Path) -> Log:
    """All exposures and clicks of a folder.

    A file that is still written, or whose writer was killed, is read as far as it is whole: a stream by its
    batches, a Parquet file not at all.

    Raises:
        LogError: there is no such folder, or a file has other columns.
    """
    if not folder.is_dir():
        raise LogError(f"{folder} is not a folder of exposures")
    found: dict[pa.Schema, list[pa.RecordBatch]] = {EXPOSURE: [], CLICK: []}
    cut = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".parquet", ".arrow"} or not path.is_file():
            continue
        try:
            for batch in _batches(path):
                kind = EXPOSURE if "ids" in batch.schema.names else CLICK
                found[kind].append(_as(kind, batch, path))
        except (pa.ArrowInvalid, OSError):
            cut.append(str(path.relative_to(folder)))
    exposures, clicks = (pa.Table.from_batches(batches, kind) for kind, batches in found.items())
    return Log(exposures, clicks, tuple(cut))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """A file's batches; `ArrowInvalid` or `OSError` where it breaks off."""
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            batch.validate(full=True)
            yield batch


def _as(kind: pa.Schema, batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """The batch with a kind's columns and types; others are dropped."""
    if missing := set(kind.names) - set(batch.schema.names):
        raise LogError(f"{path} has no column {', '.join(sorted(missing))}")
    try:
        return batch.select(kind.names).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LogError(f"{path}: {error}") from error

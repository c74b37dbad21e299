"""Rows that come in parts: prepared with one part in memory, and encoded once for all epochs.

The first pass over the source writes its rows and counts what schema and report need; the second one, over
the rows that it wrote, encodes them. In memory are a part, the rows of validation and test, and once each
distinct value of a vocabulary and each distinct id.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import polars as pl
import pyarrow.parquet as pq

from service.contract.errors import RunError
from training.data.blocks import BLOCK, BlockWriter
from training.data.prepare import SPLITS, About, Fitted, Part, Split
from training.data.sources._protocol import InParts
from training.data.tally import Tally, distinct
from training.data.writing import IDS, Cleaned, Origin, domains_of, oracle, unseen, write_rest

_CHUNK = 4 * BLOCK
"""Rows that are encoded at a time."""


def write_parts(
    folder: Path, cleaned: Cleaned, source: InParts, origin: Origin, fitted: Fitted | None
) -> None:
    """Fill a folder with what a source gives in parts.

    Raises:
        RunError: it is not what a source promises, or has a domain that is not fitted.
        SchemaError: a value does not fit its field.
    """
    tally, shares = Tally(cleaned.source.fields), _Shares()
    known: dict[str, pl.Series] = {}
    protocol, dropped = "", Counter[str]()
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Writer(folder / f"{split}.parquet")) for split in SPLITS}
        for given in source.parts():
            if "split" not in given.frame:
                raise RunError(f"{cleaned.place} come in parts, so each row needs its `split`")
            protocol, frame = given.protocol, cleaned(given.frame)
            dropped.update(given.dropped)
            for split in SPLITS:
                rows = frame.filter(pl.col("split") == split).drop("split")
                if rows.is_empty():
                    continue
                writers[split].add(rows)
                shares.add(rows, split)
                if split == "train":
                    tally.add(rows)
                    known |= {key: distinct(known.get(key), rows[key]) for key in IDS if key in rows}
    for split in SPLITS:
        if not shares.rows[split]:
            raise RunError(f"source {origin.source}: no rows for {split}")
    domains = domains_of(shares.domains, origin.source, fitted)
    schema = tally.schema() if fitted is None else fitted.schema
    test = pl.read_parquet(folder / "test.parquet")
    about = About(
        source=origin.source,
        options=origin.options,
        checksum=origin.checksum,
        protocol=protocol,
        domains=domains,
        parts={domain: {split: shares.of(domain, split) for split in SPLITS} for domain in domains},
        dropped={**dropped, **cleaned.dropped},
        oracle_auc=oracle(test, domains),
        unseen={key: unseen(ids, test[key]) for key, ids in known.items()},
    )
    writer = BlockWriter(folder / "train", schema, domains, cleaned.items, shares.rows["train"])
    # With a buffer in front it would keep what it has read of the file.
    with pq.ParquetFile(folder / "train.parquet", pre_buffer=False) as file, writer:
        for batch in file.iter_batches(_CHUNK, columns=writer.needs):
            writer.add(pl.DataFrame(batch))
    write_rest(folder, cleaned.items, schema, about)


class _Shares:
    """Rows and clicks, by domain and split."""

    def __init__(self) -> None:
        self._rows, self._clicks = Counter[tuple[str, Split]](), Counter[tuple[str, Split]]()

    def add(self, rows: pl.DataFrame, split: Split) -> None:
        """Some more rows of a split."""
        found = rows.group_by("domain").agg(n=pl.len(), clicks=pl.col("label").cast(pl.Int64).sum())
        for domain, n, clicks in found.iter_rows():
            self._rows[domain, split] += n
            self._clicks[domain, split] += clicks

    @property
    def domains(self) -> set[str]:
        """That have a row."""
        return {domain for domain, _ in self._rows}

    @property
    def rows(self) -> Counter[Split]:
        """By split."""
        found = Counter[Split]()
        for (_, split), n in self._rows.items():
            found[split] += n
        return found

    def of(self, domain: str, split: Split) -> Part:
        """What a split has of a domain."""
        n = self._rows[domain, split]
        return Part(rows=n, positive=self._clicks[domain, split] / n if n else None)


class _Writer:
    """A Parquet file that grows by a row group at a time; without any, there is no file.

    Polars writes a file at once, so this is pyarrow's writer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schema: pl.Schema | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, rows: pl.DataFrame) -> None:
        """One more row group.

        Raises:
            RunError: it does not have the columns of those before.
        """
        if self._schema is None:
            self._schema = rows.schema
            self._writer = pq.ParquetWriter(self._path, rows.to_arrow().schema, compression="zstd")
        try:
            same = rows.select(self._schema.names()).cast(self._schema)
        except pl.exceptions.PolarsError as error:
            line = " ".join(str(error).split())
            raise RunError(f"a part does not have the columns of the parts before it: {line}") from error
        assert self._writer is not None  # noqa: S101 - made with the schema
        self._writer.write_table(same.to_arrow())

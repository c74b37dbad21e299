"""`Blocks`: encoded rows on the disk, to be read some at a time.

    <folder>/
      request_ids.npy request_numbers.npy   (N, W), (N, X): as `FeatureSchema.encode` gives them
      item_ids.npy item_numbers.npy
      domain.npy label.npy                  (N,) int16 and int8
      edges.npy                             (blocks, D + 1) int64: at row `edges[b, d]` begin, in block b, the
                                            rows of domain d, and at `edges[b, D]` the block ends

Blocks lie one behind another in the order of the source, and so do a domain's rows within a block. Files are
read, not mapped: mapped pages would count as this process's memory for as long as there is room for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from service.contract.errors import RunError
from service.contract.field import Scope
from service.contract.index import Index
from service.contract.schema import FeatureSchema, Inputs
from training.data.batches import Rows
from training.data.prepare import as_column, columns
from training.data.tally import codes

Ints = npt.NDArray[np.int64]
Pieces = Sequence[tuple[int, int]]
"""Rows from, and before."""

BLOCK = 65_536
"""Rows of a block, at most."""
_AS_READ = {"domain": torch.int64, "label": torch.float32}
"""Types in memory, where they differ from those on the disk."""


@dataclass(frozen=True)
class Blocks:
    """N encoded rows of D domains in a folder."""

    folder: Path
    edges: Ints
    """(blocks, D + 1)."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The folder that a `BlockWriter` filled.

        Raises:
            RunError: there is none.
        """
        try:
            return cls(folder, np.load(folder / "edges.npy", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder} has no encoded rows: {error}") from error

    def __len__(self) -> int:
        return int(self.edges[-1, -1]) if len(self.edges) else 0

    @property
    def most(self) -> int:
        """Rows of the largest block."""
        return int((self.edges[:, -1] - self.edges[:, 0]).max(initial=0))

    def whole(self) -> list[Pieces]:
        """What to read for each block: all of it."""
        return [[(int(edge[0]), int(edge[-1]))] for edge in self.edges]

    def of_domain(self, domain: int) -> list[Pieces]:
        """The rows of one domain, gathered from blocks until they are about a block themselves."""
        groups: list[Pieces] = []
        pieces: list[tuple[int, int]] = []
        for start, end in self.edges[:, domain : domain + 2].tolist():
            if pieces and rows_of([*pieces, (start, end)]) > self.most:
                groups.append(pieces)
                pieces = []
            if end > start:
                pieces.append((start, end))
        return [*groups, pieces] if pieces else groups

    def read(self, pieces: Pieces) -> Rows:
        """These rows, one piece behind another."""
        n = rows_of(pieces)
        tensors = {}
        for name, (start_of_data, dtype, width) in self._files.items():
            array: npt.NDArray[Any] = np.empty((n, *width), dtype)
            size = array.dtype.itemsize * int(np.prod(width))
            if size:
                view = memoryview(array.data).cast("B") if n else memoryview(b"")
                with (self.folder / f"{name}.npy").open("rb", buffering=0) as file:
                    at = 0
                    for start, end in pieces:
                        file.seek(start_of_data + start * size)
                        _fill(file, view[at : at + (end - start) * size])
                        at += (end - start) * size
            tensors[name] = torch.from_numpy(array).to(_AS_READ.get(name))
        return Rows(**tensors)

    @cached_property
    def _files(self) -> dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]]:
        """Of each column: where its numbers begin, their type, and what a row has."""
        found = {}
        for name in ("request_ids", "request_numbers", "item_ids", "item_numbers", "domain", "label"):
            with (self.folder / f"{name}.npy").open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                found[name] = file.tell(), dtype, shape[1:]
        return found


class BlockWriter:
    """Encodes rows into a new folder, chunk by chunk.

    Args:
        folder: to be made.
        schema: what encodes.
        domains: D names.
        items: every item that a row can have.
        rows: N, of all chunks together.
    """

    def __init__(
        self, folder: Path, schema: FeatureSchema, domains: Sequence[str], items: pl.DataFrame, rows: int
    ) -> None:
        folder.mkdir()
        self._folder, self._schema, self._rows = folder, schema, rows
        self._places = {domain: at for at, domain in enumerate(domains)}
        self._index = Index(as_column(items["item.id"]))
        self._items = schema.encode("item", columns(items, schema, "item"), items.height)
        self._edges: list[Ints] = []
        self._at = 0
        self._stack, self._files = ExitStack(), dict[str, IO[bytes]]()

    @property
    def needs(self) -> list[str]:
        """The columns that `add` reads."""
        keys = [slot.field.key for slot in self._schema.scope("request")]
        return list(dict.fromkeys([*keys, "item.id", "domain", "label"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        edges = np.array(self._edges, np.int64).reshape(-1, len(self._places) + 1)
        np.save(self._folder / "edges.npy", edges)

    def add(self, rows: pl.DataFrame) -> None:
        """The rows that come next; those of a block may not be in two chunks.

        Raises:
            FieldError: a value does not fit its field.
        """
        domain = rows["domain"].replace_strict(self._places, return_dtype=pl.Int16).to_numpy()
        block = np.arange(len(domain)) // BLOCK
        order = np.lexsort((domain, block))
        request = self._request(rows)
        values, at = codes(rows["item.id"])
        item = self._items.take(self._index.positions(as_column(values))[at][order])
        self._append("request_ids", request.ids[order])
        self._append("request_numbers", request.numbers[order])
        self._append("item_ids", item.ids)
        self._append("item_numbers", item.numbers)
        self._append("domain", domain[order])
        self._append("label", rows["label"].to_numpy().astype(np.int8)[order])
        for each in range(int(block[-1]) + 1 if len(block) else 0):
            counts = np.bincount(domain[block == each], minlength=len(self._places))
            self._edges.append(self._at + np.concatenate([[0], np.cumsum(counts)]))
            self._at += int(counts.sum())

    def _request(self, rows: pl.DataFrame) -> Inputs:
        """As `FeatureSchema.encode`, which looks at every value; here each distinct one is looked at once."""
        scope: Scope = "request"
        inputs = self._schema.blanks[scope].take(np.zeros(rows.height, np.int64))
        for slot in self._schema.scope(scope):
            column, key = rows[slot.field.key], slot.field.key
            if column.dtype.is_nested() or column.dtype.is_float():
                self._schema.write(inputs, key, as_column(column))
                continue
            values, at = codes(column)
            few = self._schema.blanks[scope].take(np.zeros(len(values), np.int64))
            self._schema.write(few, key, as_column(values))
            if slot.field.numeric:
                inputs.numbers[:, slot.at] = few.numbers[:, slot.at][at]
            else:
                inputs.ids[:, slot.at] = few.ids[:, slot.at][at]
        return inputs

    def _append(self, name: str, array: npt.NDArray[Any]) -> None:
        if name not in self._files:
            file = self._stack.enter_context((self._folder / f"{name}.npy").open("wb"))
            header = {
                "descr": np.lib.format.dtype_to_descr(array.dtype),
                "fortran_order": False,
                "shape": (self._rows, *array.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(file, header)
            self._files[name] = file
        np.ascontiguousarray(array).tofile(self._files[name])


def _fill(file: FileIO, view: memoryview) -> None:
    """Read until the view is full.

    Raises:
        RunError: the file ends before.
    """
    while view:
        read = file.readinto(view)
        if not read:
            raise RunError(f"{file.name} is shorter than its header says")
        view = view[read:]


def rows_of(pieces: Pieces) -> int:
    """How many rows they are."""
    return sum(end - start for start, end in pieces)

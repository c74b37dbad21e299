"""`Stream`: training rows that stay on the disk, shuffled and cut into batches as they are read.

An epoch reads blocks in a random order. `BUFFER` of them at a time are shuffled row by row, and while these
are trained on, a thread reads the next ones. Both orders follow from the epoch's seed alone, so an epoch can
be taken up at any batch, and the buffers before it are not read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import torch

from training.data.batches import Rows
from training.data.blocks import Blocks, Pieces, rows_of

BUFFER = 8
"""Blocks that are mixed. Three buffers are in memory at most: one that is trained on, one that is read, and
the shuffled copy of it."""


@dataclass(frozen=True)
class Stream:
    """Rows in groups, each of about a block."""

    blocks: Blocks
    groups: Sequence[Pieces]
    device: torch.device | None = None
    """Where batches are; a buffer is moved at a time."""

    @classmethod
    def open(cls, folder: Path) -> Stream:
        """All rows of a folder of blocks.

        Raises:
            RunError: there is none.
        """
        opened = Blocks.open(folder)
        return cls(opened, opened.whole())

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        # Asked for at each step, and there may be thousands of groups.
        return sum(map(rows_of, self.groups))

    def counts(self, domains: int) -> list[int]:
        """How many of all rows each of the D domains has."""
        counts: list[int] = np.diff(self.blocks.edges, axis=1).sum(axis=0).tolist()
        return counts[:domains]

    def of(self, domain: int) -> Rows | Stream:
        """The rows of one domain: in memory, in the order of the source, where a buffer would hold them."""
        own = replace(self, groups=self.blocks.of_domain(domain))
        return own.load() if len(own) <= BUFFER * self.blocks.most else own

    def to(self, device: torch.device) -> Stream:
        """The same rows, on a device once they are read."""
        return replace(self, device=device)

    def load(self) -> Rows:
        """All of them in memory; of each block, domain by domain."""
        return self.read(range(len(self.groups)))

    def read(self, groups: Sequence[int]) -> Rows:
        """The rows of some groups."""
        rows = self.blocks.read([piece for at in groups for piece in self.groups[at]])
        return rows if self.device is None else rows.to(self.device)

    def shuffled(self, seed: int) -> Shuffled:
        """All rows in an order that `seed` decides."""
        return Shuffled(self, seed)


@dataclass(frozen=True)
class Shuffled:
    """A stream in the order of a seed."""

    stream: Stream
    seed: int

    def batches(self, size: int) -> Batches:
        """Consecutive batches, all of them full but the last one."""
        return Batches(self, size)

    def buffers(self) -> list[list[int]]:
        """The groups of each buffer."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.stream.groups), generator=generator).tolist()
        return [order[at : at + BUFFER] for at in range(0, len(order), BUFFER)]

    def read(self, buffer: Sequence[int], at: int) -> Rows:
        """The rows of the buffer that is the `at`-th, in their order."""
        rows = self.stream.read(buffer)
        return rows.shuffled(int(np.random.SeedSequence([self.seed, at]).generate_state(1)[0]))


class Batches(Iterator[Rows]):
    """Batches of a shuffled stream; nothing is read before the first one is asked for."""

    def __init__(self, rows: Shuffled, size: int) -> None:
        self._rows, self._size = rows, size
        self._cut = self.after(0)

    def __next__(self) -> Rows:
        return next(self._cut)

    def after(self, steps: int) -> Iterator[Rows]:
        """All batches but the first ones, of which only those are read that share a buffer with the rest."""
        buffers = self._rows.buffers()
        groups = self._rows.stream.groups
        ends = list(accumulate(sum(rows_of(groups[at]) for at in buffer) for buffer in buffers))
        start = steps * self._size
        first = bisect_right(ends, start)
        skip = start - (ends[first - 1] if first else 0)
        rest: Rows | None = None
        with ThreadPoolExecutor(1, "buffer") as pool:
            following = (pool.submit(self._rows.read, buffers[at], at) for at in range(first, len(buffers)))
            pending = next(following, None)
            while pending is not None:
                rows = pending.result()
                pending = next(following, None)
                if rest is not None:
                    missing = self._size - len(rest)
                    rest, skip = rest.joined(rows[:missing]), min(missing, len(rows))
                    if len(rest) < self._size:
                        skip = 0
                        continue
                    yield rest
                whole = (len(rows) - skip) // self._size * self._size
                yield from _full(rows[skip : skip + whole], self._size)
                # A copy: a part of the buffer would keep all of it in memory.
                rest = rows[skip + whole :].copied() if skip + whole < len(rows) else None
                skip = 0
                del rows
        if rest is not None:
            yield rest


def _full(rows: Rows, size: int) -> Iterator[Rows]:
    """Batches of a buffer that are full."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        # Whoever takes batches holds the last one while the next buffer but one is read already.
        yield batch if start + size < len(rows) else batch.copied()


def after(batches: Iterator[Rows], steps: int) -> Iterator[Rows]:
    """The batches behind the first ones."""
    return batches.after(steps) if isinstance(batches, Batches) else islice(batches, steps, None)

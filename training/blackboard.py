"""`Blackboard`: memory that the ranks of one host share, where each writes a tensor and adds up all of them.

Gloo hands a tensor from thread to thread to socket. Where every core computes, each of them waits for the
system's scheduler: measured on two cores, an all-reduce between steps of 6 ms takes 4 to 8 ms, of whatever
size, and here 0.1 to 0.4. Nothing here runs in another thread. That something is written is told by a byte
through a socket, whose end says also that a rank is gone.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_SPIN = 0.02
"""Seconds in which a rank that waits keeps asking. To be woken costs more than most of the waits take."""
_OPEN = 60.0
"""Seconds until all have come."""
_LEAST = 1 << 16
"""Bytes."""


class Blackboard:
    """One rank's place at it.

    Args:
        rank: this one.
        size: of how many.
        agreed: gives rank 0's value on all ranks.
    """

    def __init__(self, rank: int, size: int, agreed: Callable[[str], str]) -> None:
        self.rank, self.size = rank, size
        memory = Path("/dev/shm")  # noqa: S108 - a file system in memory; the folder in it has a name of its own
        parent = memory if os.access(memory, os.W_OK) else None
        self.folder = Path(agreed(tempfile.mkdtemp(prefix="mdctr-ranks-", dir=parent) if not rank else ""))
        self.places: list[Tensor] = []
        self.turn = self.grown = 0
        self.full = False
        """There is no memory for what is to be written."""
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(self.folder / f"{rank}.door"))
            door.listen(size)
            door.settimeout(_OPEN)
            agreed("")  # all doors are open
            self.others = {other: self._knock(other) for other in range(rank)}
            while len(self.others) < size - 1:
                visitor, _ = door.accept()
                self.others[visitor.recv(1)[0]] = visitor
        self._told(b"y", _OPEN)
        if not rank:
            for path in self.folder.glob("*.door"):
                path.unlink()

    def sum(self, parts: Sequence[Tensor], patience: float) -> Tensor | None:
        """The sum over ranks of what each has, (n,), added up in the order of ranks.

        Args:
            parts: on the CPU, of one type, (n_1,), (n_2,) ...: as many and as long on every rank.
            patience: for so many seconds it waits for others.

        Returns:
            (n,), n being n_1 + n_2 ...; None on all ranks where there is not enough shared memory.

        Raises:
            OSError: another rank has ended, or was silent for too long.
        """
        size = sum(part.nbytes for part in parts)
        if not self._fits(size, patience):
            return None
        # By turns in two places: who writes in one has been told that nobody reads in it any more.
        half, self.turn = self.turn, 1 - self.turn
        start = half * (self.places[0].nbytes // 2)
        written = [place[start : start + size].view(parts[0].dtype) for place in self.places]
        torch.cat(list(parts), out=written[self.rank])
        self._told(b"y", patience)
        total = written[0] + written[1]
        for other in written[2:]:
            total += other
        return total

    def close(self) -> None:
        """Leave; what is shared goes when the last one has left."""
        for other in self.others.values():
            other.close()
        self.places = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _knock(self, other: int) -> socket.socket:
        visitor = socket.socket(socket.AF_UNIX)
        visitor.connect(str(self.folder / f"{other}.door"))
        visitor.send(bytes([self.rank]))
        return visitor

    def _fits(self, size: int, patience: float) -> bool:
        """Whether there is room for so many bytes, after more was made if need be: on all ranks at once."""
        if self.full or (self.places and 2 * size <= self.places[0].nbytes):
            return not self.full
        room, self.grown = max(_LEAST, 4 * size), self.grown + 1
        paths = [self.folder / f"{rank}-{self.grown}" for rank in range(self.size)]
        made = b"y"
        with paths[self.rank].open("wb") as file:
            try:
                # Not a hole: to find out at the time of writing that memory is short would end the process.
                os.posix_fallocate(file.fileno(), 0, room)
            except OSError:
                made = b"n"
        self.full = not self._told(made, patience)
        if not self.full:
            self.places = [
                torch.from_file(str(path), shared=True, size=room, dtype=torch.uint8) for path in paths
            ]
            self._told(b"y", patience)
        paths[self.rank].unlink(missing_ok=True)
        return not self.full

    def _told(self, word: bytes, patience: float) -> bool:
        """Tell all others a word, and wait for theirs; whether all are `y`, this rank's included."""
        for other in self.others.values():
            other.setblocking(True)
            other.send(word)
        words = {word, *(self._heard(other, patience) for other in self.others.values())}
        return words == {b"y"}

    def _heard(self, other: socket.socket, patience: float) -> bytes:
        other.setblocking(False)
        word, until = None, time.monotonic() + _SPIN
        while word is None and time.monotonic() < until:
            with suppress(BlockingIOError):
                word = other.recv(1)
            if word is None:
                os.sched_yield()
        if word is None:
            other.settimeout(patience)
            word = other.recv(1)
        if not word:
            raise ConnectionError("another rank has ended")
        return word

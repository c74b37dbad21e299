"""`Fuzzing`: one target, its inputs, and what became of them."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from types import FrameType
from typing import Any

from tests.fuzz.corpus import slug
from tests.fuzz.reached import Reached
from tests.fuzz.target import Fault, Target

PATIENCE = 10
"""Seconds that one input may take."""
_POOL = 2000
"""Inputs that mutations begin with; of more, some go."""


class Hang(BaseException):
    """An input took longer than any may. No `Exception`, or a reader that catches all would go on."""


@dataclass
class Fuzzing:
    """A target under way."""

    target: Target
    rng: Random
    corpus: list[bytes]
    """Inputs that were kept from earlier runs."""
    inputs: int = 0
    seconds: float = 0.0
    crashes: int = 0
    faults: int = 0
    """500s, and answers that differ."""
    hangs: int = 0
    found: dict[str, bytes] = field(default_factory=dict)
    """By what went wrong, the first such input."""
    pool: list[bytes] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    """Inputs that reached something new."""
    _reached: Reached = field(default_factory=Reached)

    def __post_init__(self) -> None:
        self.pool = [*self.target.seeds]

    @property
    def lines(self) -> int:
        """Lines of the service that were reached."""
        return len(self._reached.lines)

    @property
    def figures(self) -> dict[str, float]:
        """What a report has of it."""
        return {
            "inputs": self.inputs,
            "seconds": round(self.seconds, 1),
            "crashes": self.crashes,
            "faults": self.faults,
            "hangs": self.hangs,
            "lines": self.lines,
        }

    def start(self) -> None:
        """Give it what it should take, and what was kept."""
        with self._timed():
            for data in (*self.target.seeds, *self.corpus):
                self._give(data)

    def run(self, until: Callable[[], bool]) -> None:
        """Give it mutations until told to stop."""
        with self._timed():
            while not until():
                start = self.rng.choice(self.pool)
                self._give(self.target.mutate(self.rng, start, self.pool))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = monotonic()
        try:
            yield
        finally:
            self.seconds += monotonic() - began

    def _give(self, data: bytes) -> None:
        before = self.lines
        self.inputs += 1
        try:
            with _patience():
                if self.target.traced:
                    with self._reached():
                        self.target.read(data)
                else:
                    self.target.read(data)
        except Hang:
            self.hangs += 1
            self.found.setdefault("hang", data)
        except Fault as error:
            self.faults += 1
            self.found.setdefault(f"fault: {str(error)[:300]}", data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader may not raise it
            self.crashes += 1
            self.found.setdefault(_where(error), data)
        if self.lines > before and data not in self.pool:
            self.kept.append(data)
            if len(self.pool) < _POOL:
                self.pool.append(data)
            else:
                self.pool[self.rng.randrange(len(self.target.seeds), _POOL)] = data

    def save(self, folder: Path) -> None:
        """Write what went wrong, each into a file of its own."""
        for what, data in self.found.items():
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{slug(self.target.name)}-{hashlib.sha256(data).hexdigest()[:8]}"
            (folder / name).write_bytes(data)
            (folder / f"{name}.txt").write_text(f"{self.target.name}: {what}\n")


def _where(error: BaseException) -> str:
    """An error, and the line of ours that raised it."""
    at, trace = "", error.__traceback__
    while trace is not None:
        at, trace = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}", trace.tb_next
    return f"{type(error).__name__} at {at}: {str(error)[:200]}"


@contextmanager
def _patience() -> Iterator[None]:
    def over(number: int, frame: FrameType | None) -> Any:
        raise Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

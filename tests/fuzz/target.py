"""`Target`: something that reads bytes, and what it may do about wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz.mutations import Mutate, damaged


class Fault(AssertionError):
    """A 500, an answer that is not a service's, or another answer to a good request than before."""


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    seeds: Sequence[bytes]
    """Inputs that it takes."""
    read: Callable[[bytes], None]
    """Gives it an input; raises only where the reader did what it may not do."""
    mutate: Mutate = damaged
    traced: bool = True
    """Whether its lines are seen from here; another process's are not."""

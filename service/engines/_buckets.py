"""`Buckets`: the few sizes that an engine is prepared for, and how a count of candidates is cut into them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Buckets:
    """Sizes in candidates, ascending.

    Raises:
        ValueError: there is none, or they are not distinct, ascending and above 0.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or self.sizes[0] < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes must be ascending and above 0, not {self.sizes}")

    @property
    def largest(self) -> int:
        """The last size."""
        return self.sizes[-1]

    def fit(self, count: int) -> int:
        """The smallest size that holds `count` candidates.

        Raises:
            ValueError: none does.
        """
        if count > self.largest:
            raise ValueError(f"{count} candidates are more than the largest size, {self.largest}")
        return self.sizes[bisect_left(self.sizes, count)]

    def split(self, count: int) -> list[tuple[int, int, int]]:
        """Runs (start, stop, size) that cover `count` candidates in order; none for no candidates.

        Each but the last fills the largest size.
        """
        starts = range(0, count, self.largest)
        stops = [min(start + self.largest, count) for start in starts]
        return [(start, stop, self.fit(stop - start)) for start, stop in zip(starts, stops, strict=True)]


def pad(array: npt.NDArray[Any], start: int, stop: int, into: npt.NDArray[Any]) -> None:
    """Write rows [start, stop) of `array` (B, ...) to the head of `into` (size, ...), zeros after them.

    Rows do not depend on their neighbours, so what stands in the padding changes no candidate's score. Zero
    is a row of every table, and a number in every sum.
    """
    rows = stop - start
    into[:rows] = array[start:stop]
    into[rows:] = np.zeros((), into.dtype)

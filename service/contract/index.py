"""`Index`: from a value to its position, for many values at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Values = Sequence[int] | Sequence[str] | npt.NDArray[np.generic]

_INT64 = np.iinfo(np.int64)


class Index:
    """An immutable map from distinct integers, or distinct strings, to 0..n-1.

    Integers go through a direct table where their range is compact, else through a binary search;
    strings through a dictionary.
    """

    def __init__(self, keys: Values) -> None:
        self._size = len(keys)
        self._lookup: dict[str, int] | None = None
        array = np.asarray(keys)
        if self._size and array.dtype.kind in "iu":
            self._low = int(array.min())
            self._span = int(array.max()) - self._low + 1
            self._dense = self._span <= 8 * self._size + 1024
            if self._dense:
                self._table = np.full(self._span, -1, np.int32)
                self._table[array.astype(np.int64) - self._low] = np.arange(self._size, dtype=np.int32)
            else:
                order = np.argsort(array, kind="stable")
                self._sorted, self._order = array[order].astype(np.int64), order.astype(np.int32)
        else:
            # Of the keys as they were given: in an array of texts they lose what NULs they end with.
            plain = array.tolist() if isinstance(keys, np.ndarray) else keys
            self._lookup = {str(key): at for at, key in enumerate(plain)}

    def __len__(self) -> int:
        return self._size

    def position(self, value: int | str) -> int:
        """The position of one value of the keys' own type, -1 where it has none."""
        if self._lookup is not None:
            return self._lookup.get(value, -1)  # type: ignore[arg-type]
        if self._dense:
            at = int(value) - self._low
            return int(self._table[at]) if 0 <= at < self._span else -1
        return int(self.positions([int(value)])[0])

    def positions(self, values: Values) -> npt.NDArray[np.int32]:
        """The position of each value, -1 where it has none.

        Args:
            values: (n,) of the keys' own type.

        Returns:
            (n,) int32.
        """
        if self._lookup is not None:
            get = self._lookup.get
            plain: Iterable[Any] = values.tolist() if isinstance(values, np.ndarray) else values
            return np.fromiter((get(value, -1) for value in plain), np.int32, len(values))
        array = _int64(values)
        if self._dense:
            at = array - self._low
            # A difference that wraps around is negative or too large, so it is outside either way.
            inside = (array >= self._low) & (at >= 0) & (at < self._span)
            return np.where(inside, self._table[np.where(inside, at, 0)], np.int32(-1))
        at = np.searchsorted(self._sorted, array)
        at[at == self._size] = 0
        return np.where(self._sorted[at] == array, self._order[at], np.int32(-1))


def _int64(values: Values) -> npt.NDArray[np.int64]:
    """Integers as int64; what does not fit becomes an end of the range, which no key is expected to be."""
    try:
        return np.asarray(values, np.int64)
    except OverflowError:
        return np.fromiter((min(max(int(v), _INT64.min), _INT64.max) for v in values), np.int64, len(values))

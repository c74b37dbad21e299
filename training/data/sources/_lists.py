"""`lists`: a column of lists out of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow


def lists(values: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> pl.Series:
    """Values (n, w) as n lists of those that are `kept` (n, w), in their order."""
    offsets = np.append(0, np.cumsum(kept.sum(axis=1)))
    return pl.Series(pl.from_arrow(pyarrow.LargeListArray.from_arrays(offsets, values[kept])))

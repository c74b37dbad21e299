"""`Field`: one field of a model, and how its values become numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Constraint

from service.contract.errors import SchemaError
from service.contract.hashing import bucket
from service.contract.index import Index

Owner = Literal["user", "context", "item"]
Scope = Literal["request", "item"]
Column = Sequence[Any] | npt.NDArray[Any]

OOV = 0
"""Offset of a field's row for values that are missing or unknown."""
PAD = -1
"""Fills a multi-valued field beyond its values; no row."""
_LARGEST = 1e30
"""Beyond it a number, given or scaled, would come close to overflowing float32."""


class FieldError(SchemaError):
    """A value does not fit its field: `at` is its position in the column."""

    def __init__(self, field: str, at: int, detail: str) -> None:
        self.field, self.at, self.detail = field, at, detail
        super().__init__(f"{field}[{at}]: {detail}")


class Field(BaseModel):
    """One field: what it is called, who owns it, and how its values become rows of the fused table.

    A field called `id` takes the user's, or the item's, id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Constraint(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    owner: Owner
    kind: Literal["vocabulary", "hashed", "number", "vector"]
    dtype: Literal["int", "str"] = "str"
    """What a value of a vocabulary or hashed field is in JSON."""
    multiple: Annotated[int, Constraint(ge=1, le=1000)] | None = None
    """A value is a list, of which at most so many are kept; their embeddings are averaged."""
    min_count: Annotated[int, Constraint(ge=1)] = 1
    """Vocabulary: a value seen less often in the training rows is treated as unknown."""
    buckets: Annotated[int, Constraint(ge=1)] | None = None
    """Hashed: into how many rows."""
    values: tuple[int, ...] | tuple[str, ...] = ()
    """Vocabulary, once fitted: the values that have a row, in the order of their rows."""
    mean: float = 0.0
    std: float = 1.0
    """Number, once fitted: what is subtracted, then divided by. A missing number becomes 0 after that."""
    size: Annotated[int, Constraint(ge=1, le=4096)] | None = None
    """Vector: how many numbers a value is. They are taken as they are; a missing one is all zeros."""

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:  # noqa: ANN401 - whatever JSON held
        if isinstance(data, dict) and isinstance(data.get("values"), list):
            data = {**data, "values": tuple(data["values"])}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "hashed") != (self.buckets is not None):
            raise ValueError(f"{self.key}: `buckets` goes with kind 'hashed', and only with it")
        if (self.kind == "vector") != (self.size is not None):
            raise ValueError(f"{self.key}: `size` goes with kind 'vector', and only with it")
        if self.numeric and (self.multiple or self.values):
            raise ValueError(f"{self.key}: a {self.kind} has neither `multiple` nor `values`")
        if self.kind != "vocabulary" and (self.values or self.min_count > 1):
            raise ValueError(f"{self.key}: `values` and `min_count` go with kind 'vocabulary'")
        if self.kind != "number" and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(f"{self.key}: `mean` and `std` go with kind 'number'")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"{self.key}: `mean` must be finite and `std` above 0")
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"{self.key}: `values` has duplicates")
        return self

    @property
    def key(self) -> str:
        """`owner.name`, the field's column in interactions."""
        return f"{self.owner}.{self.name}"

    @property
    def scope(self) -> Scope:
        """Where in a request its value comes from."""
        return "item" if self.owner == "item" else "request"

    @property
    def rows(self) -> int:
        """Rows of the fused table that belong to the field."""
        if self.numeric:
            return self.width
        return 1 + (len(self.values) if self.kind == "vocabulary" else self.buckets or 0)

    @property
    def numeric(self) -> bool:
        """Whether its values scale rows, and are not rows."""
        return self.kind in {"number", "vector"}

    @property
    def width(self) -> int:
        """Columns that the field takes in its scope's array."""
        return self.size or self.multiple or 1

    def fit(self, column: Column) -> Field:
        """The field with its vocabulary, or its mean and deviation, taken from training rows.

        Vocabularies are sorted, so they do not depend on the rows' order. One that came with the field stays.
        """
        if self.kind in {"hashed", "vector"} or self.values:
            return self
        if self.kind == "number":
            known = self._numbers(column)
            known = known[~np.isnan(known)]
            std = float(known.std()) if len(known) else 1.0
            mean = float(known.mean()) if len(known) else 0.0
            return self.model_copy(update={"mean": mean, "std": std if std > 0 else 1.0})
        plain = column.tolist() if isinstance(column, np.ndarray) else column
        lists = plain if self.multiple else [plain]
        present = [value for values in lists if values is not None for value in values if value is not None]
        self._check_types(present)
        values, counts = np.unique(np.asarray(present), return_counts=True)
        kept = values[counts >= self.min_count].tolist()
        return self.model_copy(update={"values": tuple(kept)})

    def encode(self, column: Column) -> Encoded:
        """Values to row numbers, counted from the field's first row, or to scaled numbers.

        Args:
            column: n values; None is a missing one. A multi-valued field takes n lists, a vector also an
                array (n, size).

        Returns:
            (n, width) int32 with `PAD` beyond a list's end, or float32 for numbers; and how many values
            were given but unknown.

        Raises:
            FieldError: a value is of the wrong type, or not finite.
        """
        if self.kind == "number":
            scaled = (self._numbers(column) - self.mean) / self.std
            bounded = np.clip(np.nan_to_num(scaled, nan=0.0), -_LARGEST, _LARGEST)
            return Encoded(bounded.astype(np.float32)[:, None], 0)
        if self.kind == "vector":
            return Encoded(self._vectors(column).astype(np.float32), 0)
        if self.multiple is None:
            rows, unknown = self._rows(column)
            return Encoded(rows[:, None], unknown)
        out = np.full((len(column), self.multiple), PAD, np.int32)
        lists = [self._list(value, at)[: self.multiple] for at, value in enumerate(column)]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        try:
            rows, unknown = self._rows([value for row in lists for value in row])
        except FieldError as error:
            at = int(np.searchsorted(np.cumsum(lengths), error.at, side="right"))
            raise FieldError(self.key, at, error.detail) from None
        out[np.arange(self.multiple) < lengths[:, None]] = rows
        return Encoded(out, unknown)

    def encode_one(self, value: Any) -> tuple[float, int] | None:  # noqa: ANN401 - whatever JSON held
        """What `encode` gives for one value, without arrays; None for what only `encode` deals with.

        Returns:
            Its row, or its scaled number; and how many values were unknown, 0 or 1.
        """
        kind = type(value)
        if self.kind == "number":
            if (kind is not float and kind is not int) or not abs(value) <= _LARGEST:
                return None
            return min(max((value - self.mean) / self.std, -_LARGEST), _LARGEST), 0
        if self.multiple or self.size or kind is not (int if self.dtype == "int" else str):
            return None
        if self.kind == "hashed":
            return bucket(value, self.buckets or 1) + 1, 0
        row = self._index.position(value) + 1
        return row, int(row == OOV)

    @cached_property
    def _index(self) -> Index:
        return Index(self.values)

    def _rows(self, column: Column) -> tuple[npt.NDArray[np.int32], int]:
        present = np.ones(len(column), bool)
        known = column
        if not (isinstance(column, np.ndarray) and column.dtype.kind in "iu" and self.dtype == "int"):
            known = column.tolist() if isinstance(column, np.ndarray) else column
            if None in known:
                present = np.fromiter((value is not None for value in known), bool, len(known))
                known = [value for value in known if value is not None]
            self._check_types(known, present)
        rows = np.full(len(column), OOV, np.int32)
        if self.kind == "hashed":
            size = self.buckets or 1
            rows[present] = np.fromiter((bucket(value, size) + 1 for value in known), np.int32, len(known))
            return rows, 0
        found = self._index.positions(known) + np.int32(1)
        rows[present] = found
        return rows, int((found == OOV).sum())

    def _check_types(self, known: Column, present: npt.NDArray[np.bool_] | None = None) -> None:
        """Exact types, so that True is no integer; one pass in C unless something is wrong."""
        want = int if self.dtype == "int" else str
        if set(map(type, known)) <= {want}:
            return
        at = next(at for at, value in enumerate(known) if type(value) is not want)
        place = at if present is None else int(np.flatnonzero(present)[at])
        raise FieldError(self.key, place, f"expected {self.dtype}, got {type(known[at]).__name__}")

    def _list(self, value: Any, at: int) -> Sequence[Any]:  # noqa: ANN401 - whatever JSON held
        if value is None:
            return ()
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(plain, list | tuple):
            raise FieldError(self.key, at, f"expected a list, got {type(plain).__name__}")
        return plain

    def _numbers(self, column: Column) -> npt.NDArray[np.float64]:
        """(n,) float64 with NaN for None; anything else that is not a finite number is refused."""
        plain = column.tolist() if isinstance(column, np.ndarray) else column
        if set(map(type, plain)) <= {int, float, type(None)}:
            try:
                numbers = np.asarray(plain, np.float64)  # None becomes NaN
            except OverflowError:
                numbers = np.full(len(plain), np.inf)
            if (np.abs(numbers) <= _LARGEST).all():
                return numbers
        numbers = np.empty(len(plain))
        for at, value in enumerate(plain):
            numbers[at] = np.nan if value is None else self._number(value, at)
        return numbers

    def _vectors(self, column: Column) -> npt.NDArray[np.floating[Any]]:
        """(n, size) with zeros for None; anything else that is not `size` finite numbers is refused."""
        if isinstance(column, np.ndarray) and column.dtype.char in "fd" and column.shape[1:] == (self.size,):
            given: npt.NDArray[np.floating[Any]] = column
            if (np.abs(given) <= _LARGEST).all():
                return given
        zeros = (0.0,) * self.width
        rows = [zeros if value is None else self._list(value, at) for at, value in enumerate(column)]
        for at, row in enumerate(rows):
            if len(row) != self.size:
                raise FieldError(self.key, at, f"expected {self.size} numbers, got {len(row)}")
        if set(map(type, chain.from_iterable(rows))) <= {int, float}:
            with suppress(OverflowError):
                numbers = np.fromiter(chain.from_iterable(rows), np.float64, len(rows) * self.width)
                if (np.abs(numbers) <= _LARGEST).all():
                    return numbers.reshape(-1, self.width)
        return np.array([[self._number(number, at) for number in row] for at, row in enumerate(rows)])

    def _number(self, value: Any, at: int) -> float:  # noqa: ANN401 - whatever JSON held
        if type(value) not in {int, float}:
            raise FieldError(self.key, at, f"expected a number, got {type(value).__name__}")
        if not abs(value) <= _LARGEST:
            raise FieldError(self.key, at, "expected a finite number of at most 1e30")
        return float(value)


@dataclass(frozen=True)
class Encoded:
    """A field's column, encoded: (n, width) int32 rows or float32 numbers; unknown values counted."""

    values: npt.NDArray[Any]
    unknown: int

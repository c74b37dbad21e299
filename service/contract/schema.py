"""`FeatureSchema`: which fields a model reads, and how their values become numbers.

Every field has its own rows in **one** fused table of V rows (`FeatureSchema.rows`): a vocabulary field
one row a value, a hashed field one a bucket, a number one row that its value scales. The first row of a
vocabulary or hashed field stands for values that are missing or were never seen (OOV). Encoding gives
those row numbers, so neither the service nor a network needs to know where a field's rows begin.

Fields belong to a user, an item or the context of a request. User and context fields make the *request*
scope: one value a request. Item fields make the *item* scope: one value a candidate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic import Field as Constraint

from service.contract import files
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
    kind: Literal["vocabulary", "hashed", "number"]
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
        if self.kind == "number" and (self.multiple or self.values):
            raise ValueError(f"{self.key}: a number has neither `multiple` nor `values`")
        if self.kind != "vocabulary" and (self.values or self.min_count > 1):
            raise ValueError(f"{self.key}: `values` and `min_count` go with kind 'vocabulary'")
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
        return {"vocabulary": len(self.values) + 1, "hashed": (self.buckets or 0) + 1, "number": 1}[self.kind]

    @property
    def width(self) -> int:
        """Columns that the field takes in its scope's array."""
        return self.multiple or 1

    def fit(self, column: Column) -> Field:
        """The field with its vocabulary, or its mean and deviation, taken from training rows.

        Vocabularies are sorted, so they do not depend on the rows' order.
        """
        if self.kind == "hashed":
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
            column: n values; None is a missing one. A multi-valued field takes n lists.

        Returns:
            (n, width) int32 with `PAD` beyond a list's end, or (n,) float32 for a number; and how many
            values were given but unknown.

        Raises:
            FieldError: a value is of the wrong type, or not finite.
        """
        if self.kind == "number":
            scaled = (self._numbers(column) - self.mean) / self.std
            bounded = np.clip(np.nan_to_num(scaled, nan=0.0), -_LARGEST, _LARGEST)
            return Encoded(bounded.astype(np.float32), 0)
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
        if self.multiple is not None or kind is not (int if self.dtype == "int" else str):
            return None
        if self.kind == "hashed":
            return bucket(value, self.buckets or 1) + 1, 0
        row = self._index.position(value) + 1
        return row, int(row == OOV)

    @cached_property
    def _index(self) -> Index:
        return Index(np.asarray(self.values) if self.values else ())

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

    def _number(self, value: Any, at: int) -> float:  # noqa: ANN401 - whatever JSON held
        if type(value) not in {int, float}:
            raise FieldError(self.key, at, f"expected a number, got {type(value).__name__}")
        if not abs(value) <= _LARGEST:
            raise FieldError(self.key, at, "expected a finite number of at most 1e30")
        return float(value)


@dataclass(frozen=True)
class Encoded:
    """A field's column, encoded: rows (n, width) int32 or numbers (n,) float32; unknown values counted."""

    values: npt.NDArray[Any]
    unknown: int


@dataclass(frozen=True)
class Inputs:
    """One scope's arrays: `ids` (n, W) int32 rows of the fused table, `numbers` (n, X) float32."""

    ids: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def copy(self) -> Inputs:
        """The same numbers, to be written to."""
        return Inputs(self.ids.copy(), self.numbers.copy())

    def take(self, rows: npt.NDArray[Any] | slice) -> Inputs:
        """These rows, in this order."""
        return Inputs(self.ids[rows], self.numbers[rows])


@dataclass(frozen=True)
class Slot:
    """Where a field's values stand in its scope's arrays."""

    field: Field
    offset: int
    """First of its rows in the fused table."""
    at: slice
    """Its columns: of `ids`, or of `numbers` for a number."""


class FeatureSchema(BaseModel):
    """The fields of a model, in order, and where each one's rows and columns are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    fields: tuple[Field, ...]

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:  # noqa: ANN401 - whatever JSON held
        if isinstance(data, dict) and isinstance(data.get("fields"), list):
            data = {**data, "fields": tuple(data["fields"])}
        return data

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        keys = [field.key for field in self.fields]
        if len(set(keys)) != len(keys):
            raise ValueError(
                f"a field is declared twice: {sorted({key for key in keys if keys.count(key) > 1})}"
            )
        if {field.scope for field in self.fields} != {"request", "item"}:
            raise ValueError("a schema needs a user or context field and an item field")
        return self

    @classmethod
    def fit(cls, fields: Iterable[Field], columns: Mapping[str, Column]) -> FeatureSchema:
        """A schema whose vocabularies and scales come from training rows.

        Args:
            fields: as declared by a source.
            columns: training rows by `Field.key`.
        """
        return cls(fields=tuple(field.fit(columns[field.key]) for field in fields))

    @classmethod
    def load(cls, path: Path) -> FeatureSchema:
        """Read a schema that `save` wrote.

        Raises:
            SchemaError: the file is not a schema of this format.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise SchemaError(f"{path} is not a schema: {error}") from error

    def save(self, path: Path) -> None:
        """Write the schema as JSON, atomically."""
        files.write(path, self.model_dump_json(exclude_defaults=True))

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the schema's JSON."""
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()

    @cached_property
    def rows(self) -> int:
        """V: rows of the fused table."""
        return sum(field.rows for field in self.fields)

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Every field's place, by `Field.key`."""
        offsets = [0, *accumulate(field.rows for field in self.fields)]
        used: dict[tuple[Scope, bool], int] = {}
        slots = {}
        for field, offset in zip(self.fields, offsets, strict=False):
            group = (field.scope, field.kind == "number")
            start = used.get(group, 0)
            used[group] = start + field.width
            slots[field.key] = Slot(field, offset, slice(start, start + field.width))
        return slots

    def scope(self, scope: Scope) -> list[Slot]:
        """The slots of one scope, in the order of its fields."""
        return [slot for slot in self.slots.values() if slot.field.scope == scope]

    def widths(self, scope: Scope) -> tuple[int, int]:
        """(W, X): columns of ids and of numbers in a scope."""
        slots = self.scope(scope)
        numbers = sum(slot.field.kind == "number" for slot in slots)
        return sum(slot.field.width for slot in slots if slot.field.kind != "number"), numbers

    @cached_property
    def blanks(self) -> dict[Scope, Inputs]:
        """One row a scope with nothing known: OOV ids, empty lists, mean numbers."""
        return {scope: self._blank(scope) for scope in ("request", "item")}

    def _blank(self, scope: Scope) -> Inputs:
        ids, numbers = self.widths(scope)
        row = Inputs(np.full((1, ids), PAD, np.int32), np.zeros((1, numbers), np.float32))
        for slot in self.scope(scope):
            if slot.field.kind != "number" and slot.field.multiple is None:
                row.ids[0, slot.at] = slot.offset + OOV
        return row

    def write(
        self, inputs: Inputs, key: str, column: Column, rows: npt.NDArray[Any] | slice = slice(None)
    ) -> int:
        """Encode one field's column into `inputs`, in place.

        Args:
            inputs: arrays of the field's scope.
            key: the field.
            column: a value for each of the rows written.
            rows: which rows to write; all by default.

        Returns:
            How many values were unknown.

        Raises:
            FieldError: a value does not fit the field.
        """
        slot = self.slots[key]
        encoded = slot.field.encode(column)
        if slot.field.kind == "number":
            inputs.numbers[rows, slot.at.start] = encoded.values
        else:
            inputs.ids[rows, slot.at] = np.where(encoded.values == PAD, PAD, encoded.values + slot.offset)
        return encoded.unknown

    def write_one(self, inputs: Inputs, key: str, value: Any) -> int:  # noqa: ANN401 - whatever JSON held
        """As `write` of one value into the first row, several times as fast.

        Raises:
            FieldError: the value does not fit the field.
        """
        slot = self.slots[key]
        encoded = slot.field.encode_one(value)
        if encoded is None:
            return self.write(inputs, key, [value], slice(0, 1))
        found, unknown = encoded
        if slot.field.kind == "number":
            inputs.numbers[0, slot.at.start] = found
        else:
            inputs.ids[0, slot.at.start] = found + slot.offset
        return unknown

    def encode(self, scope: Scope, columns: Mapping[str, Column], n: int) -> Inputs:
        """Columns by `Field.key` to a scope's arrays of n rows; a field without a column is unknown.

        Raises:
            FieldError: a value does not fit its field.
        """
        inputs = self.blanks[scope].take(np.zeros(n, np.int64))
        for slot in self.scope(scope):
            if slot.field.key in columns:
                self.write(inputs, slot.field.key, columns[slot.field.key])
        return inputs

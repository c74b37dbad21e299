"""`FeatureSchema`: which fields a model reads, and how their values become numbers.

Every field has its own rows in **one** fused table of V rows (`FeatureSchema.rows`): a vocabulary field
one row a value, a hashed field one a bucket, a number one row that its value scales, a vector one for each
of its numbers, which are scaled and added up. The first row of a
vocabulary or hashed field stands for values that are missing or were never seen (OOV). Encoding gives
those row numbers, so neither the service nor a network needs to know where a field's rows begin.

Fields belong to a user, an item or the context of a request. User and context fields make the *request*
scope: one value a request. Item fields make the *item* scope: one value a candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from service.contract import files
from service.contract.errors import SchemaError
from service.contract.field import OOV, PAD, Column, Field, Scope


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
    """Its columns: of `ids`, or of `numbers` for a numeric field."""


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
            group = (field.scope, field.numeric)
            start = used.get(group, 0)
            used[group] = start + field.width
            slots[field.key] = Slot(field, offset, slice(start, start + field.width))
        return slots

    def scope(self, scope: Scope) -> list[Slot]:
        """The slots of one scope, in the order of its fields."""
        return [slot for slot in self.slots.values() if slot.field.scope == scope]

    def widths(self, scope: Scope) -> tuple[int, int]:
        """(W, X): columns of ids and of numbers in a scope."""
        fields = [slot.field for slot in self.scope(scope)]
        numbers = sum(field.width for field in fields if field.numeric)
        return sum(field.width for field in fields) - numbers, numbers

    @cached_property
    def blanks(self) -> dict[Scope, Inputs]:
        """One row a scope with nothing known: OOV ids, empty lists, mean numbers, zero vectors."""
        return {scope: self._blank(scope) for scope in ("request", "item")}

    def _blank(self, scope: Scope) -> Inputs:
        ids, numbers = self.widths(scope)
        row = Inputs(np.full((1, ids), PAD, np.int32), np.zeros((1, numbers), np.float32))
        for slot in self.scope(scope):
            if not slot.field.numeric and slot.field.multiple is None:
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
        if slot.field.numeric:
            inputs.numbers[rows, slot.at] = encoded.values
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
        if slot.field.numeric:
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

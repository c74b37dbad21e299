"""`Edition`: an item table as it is published, named by its content.

It lists the table's arrays, and the hashes of the parts that each is cut into. So the hash of its own few
bytes, its version, is that of the whole table, and tables share the parts in which they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.contract import hashing
from service.contract.bundle import Bundle
from service.contract.errors import ItemsError
from service.contract.manifest import Sha256

PART = 1 << 20
"""Bytes of each part of an array but the last: neither a store nor who reads it stops long for one."""
MOST = 4_000_000_000
"""Bytes of a table that services take, unless told otherwise."""
Arrays = Mapping[str, npt.NDArray[Any]]
"""By name of the bundle's file for it: `id` (n,), `ids` (n + 1, W), `numbers` (n + 1, X), and item halves."""

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Stored(BaseModel):
    """One array, in parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Annotated[str, Field(pattern=r"^<(i4|i8|f4|U[1-9][0-9]{0,3})$")]
    """As numpy writes it."""
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=8)]
    parts: tuple[_Hash, ...]
    """Of its bytes, in C order, `PART` at a time."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.parts) != -(-self.nbytes // PART):
            raise ValueError(f"{self.nbytes} bytes are not {len(self.parts)} parts")
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each part, and its bytes."""
        for at, part in enumerate(self.parts):
            yield part, min(PART, self.nbytes - at * PART)


class Edition(BaseModel):
    """What an item table holds, and which bundle it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    bundle: str
    schema_fingerprint: Sha256
    arrays: dict[_Name, Stored]

    @classmethod
    def of(cls, bundle: Bundle, arrays: Arrays) -> Edition:
        """The edition of a table for a bundle."""
        stored = {
            name: Stored(
                dtype=array.dtype.str,
                shape=array.shape,
                parts=tuple(hashing.content(part) for part in parts(array)),
            )
            for name, array in arrays.items()
        }
        manifest = bundle.manifest
        return cls(bundle=manifest.bundle, schema_fingerprint=manifest.schema_fingerprint, arrays=stored)

    @classmethod
    def from_bytes(cls, data: bytes) -> Edition:
        """Read an edition.

        Raises:
            ItemsError: it is none of this format.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ItemsError(f"not an item table: {place}: {first['msg']}") from None

    def to_bytes(self) -> bytes:
        """The edition as it is stored; its version is their hash."""
        return self.model_dump_json().encode()

    @property
    def version(self) -> str:
        """The hash of `to_bytes`."""
        return hashing.content(self.to_bytes())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(stored.nbytes for stored in self.arrays.values())

    @property
    def items(self) -> int:
        """Items of the table."""
        return self.arrays["id"].shape[0] if "id" in self.arrays else 0

    def check(self, bundle: Bundle, most: int) -> None:
        """Compare with a bundle all that can be compared before the table itself is read.

        Args:
            bundle: what it must be for.
            most: bytes that it may have.

        Raises:
            ItemsError: it is for another, has other arrays than the bundle's own table, or is too large.
        """
        manifest = bundle.manifest
        if self.bundle != manifest.bundle:
            raise ItemsError(f"it is for bundle {self.bundle}, not {manifest.bundle}")
        if self.schema_fingerprint != manifest.schema_fingerprint:
            raise ItemsError("it was encoded with another schema than the bundle's")
        own = bundle.item_arrays
        if strange := sorted(self.arrays.keys() ^ own.keys()):
            raise ItemsError(f"it and the bundle's own table do not both have {', '.join(strange)}")
        for name, array in own.items():
            stored = self.arrays[name]
            rows = self.items + (name != "id")
            if name == "id":  # which may be longer, or wider, than the bundle's
                same = (np.dtype(stored.dtype).kind == "U") == (bundle.items.dtype == "str")
            else:
                same = stored.dtype == array.dtype.str
            if not same:
                raise ItemsError(f"its {name} are {stored.dtype}, not {array.dtype.str}")
            if stored.shape != (rows, *array.shape[1:]):
                raise ItemsError(f"its {name} are {stored.shape}, not {(rows, *array.shape[1:])}")
        if self.nbytes > most:
            raise ItemsError(f"it has {self.nbytes:,} bytes; at most {most:,} are taken")


def parts(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of an array, `PART` at a time."""
    whole = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(whole), PART):
        yield whole[start : start + PART]

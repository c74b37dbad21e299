"""`RequestEncoder`: from a request's fields, and the item table, to the graph's inputs."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.contract.bundle import Bundle
from service.contract.errors import BundleError, InvalidRequest, Place
from service.contract.field import Column, FieldError, Scope
from service.contract.manifest import ITEM_ROWS
from service.contract.schema import Inputs
from service.engines._protocol import Arrays
from service.items import Items
from service.stores._protocol import Version

_TYPES: Mapping[str, type] = {"int": int, "str": str}
Ids = Sequence[Any] | npt.NDArray[np.integer[Any]]
_Counts = tuple[dict[str, int], Counter[str]]
"""By field: values that were looked up, and those of them that the model has never seen."""
_is_given = partial(operator.is_not, None)


@dataclass(frozen=True)
class Encoded:
    """A request as the graph reads it."""

    inputs: Arrays
    values: Mapping[str, int]
    """By field, how many values were looked up; under `item.id`, the candidates."""
    unknown: Mapping[str, int]
    """By field, how many of those the model has never seen; under `item.id`, ids without a row."""
    items: Version | None
    """The item table that it was encoded with; None for the bundle's own."""
    numbers: npt.NDArray[np.int64] | None
    """(B,) the ids as they were looked up; None where they are texts, or one does not fit int64."""


class RequestEncoder:
    """Encodes requests for one bundle.

    An item's field is taken from the body, else from the item table, else it is unknown. A user's or the
    context's is taken from what is given, else it is unknown; what is kept of a user was merged under it
    before. Unknown values are counted; unknown fields, and values of a wrong type, are refused.

    Candidates whose fields are all the item table's are given by their rows in it, if the bundle has item
    halves. An id without a row is row 0 then, of which nothing is known; but not where the id is a field
    itself, and may have an embedding.
    """

    def __init__(self, bundle: Bundle, max_candidates: int) -> None:
        self._schema = bundle.schema
        self.items = Items.own(bundle)
        """What is read of items; whoever replaces it does so between two requests."""
        self._max_candidates = max_candidates
        self._has_halves = bundle.manifest.item_halves is not None
        self._fed = {spec.name for spec in bundle.manifest.inputs if spec.source == "schema"}
        known = {f"{scope}.{part}" for scope in ("request", "item") for part in ("ids", "numbers")}
        if strange := sorted(self._fed - known):
            raise BundleError(f"the graph has inputs that no request gives: {', '.join(strange)}")
        self._fed |= {ITEM_ROWS, *self.items.halves}
        id_slot = self._schema.slots.get("item.id")
        self._id_is_read = id_slot is not None
        self._lists = {field.key for field in self._schema.fields if field.multiple is not None}
        self._dtype = bundle.items.dtype
        if id_slot is not None and id_slot.field.dtype != self._dtype:
            raise BundleError(f"item.id is {id_slot.field.dtype}, but the item table has {self._dtype}")
        # Vocabularies and the table's index are built when first used, and that is not to be in a request.
        scopes: tuple[Scope, ...] = ("request", "item")
        for scope in scopes:
            self._schema.encode(scope, {slot.field.key: [None] for slot in self._schema.scope(scope)}, 1)
        bundle.items.rows(bundle.items.keys[:1])

    def encode(
        self,
        user: Mapping[str, Any],
        context: Mapping[str, Any],
        ids: Ids,
        items: Mapping[str, Column],
    ) -> Encoded:
        """Encode one request of B candidates.

        Args:
            user: values by field, and `id` whether or not that is a field.
            context: values by field.
            ids: B item ids; integers may be an array.
            items: columns of B values by field.

        Raises:
            InvalidRequest: the body breaks the schema, at the places listed.
        """
        self._check_ids(ids)
        places: list[Place] = []
        unknown: Counter[str] = Counter()
        values = {"item.id": len(ids)}
        counts = values, unknown
        request = self._schema.blanks["request"].copy()
        self._write_row(request, "user", user, places, counts)
        self._write_row(request, "context", context, places, counts)
        known = self.items  # one and the same from here on
        numbers = self._numbers(ids)
        rows = known.table.rows(ids if numbers is None else numbers)
        arrays = {"request.ids": request.ids, "request.numbers": request.numbers}
        if not items and self._has_halves and (rows.all() or not self._id_is_read):
            if not rows.all():
                unknown["item.id"] += len(rows) - int(np.count_nonzero(rows))
            arrays |= {ITEM_ROWS: rows, **known.halves}
        else:
            item = known.table.inputs.take(rows)
            self._write_strangers(item, ids, rows == 0, unknown)
            self._write_columns(item, items, places, counts)
            arrays |= {"item.ids": item.ids, "item.numbers": item.numbers}
        if places:
            raise InvalidRequest(places)
        fed = {name: array for name, array in arrays.items() if name in self._fed}
        return Encoded(fed, values, unknown, known.version, numbers)

    def readable(self, profile: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What of a user's profile the model reads.

        A profile is for many models, and whoever asks is not at fault for what stands there: what no field
        is called does not matter, and a value that does not fit its field is left out.

        Args:
            profile: values by field name.

        Returns:
            Values by field name, and the fields whose values are left out.
        """
        fields: dict[str, Any] = {}
        refused = []
        for name, value in profile.items():
            slot = self._schema.slots.get(f"user.{name}")
            if slot is None or name == "id" or value is None:  # who it is, the request says
                continue
            try:
                slot.field.encode([value])
                fields[name] = value
            except FieldError:
                refused.append(name)
        return fields, refused

    def _check_ids(self, ids: Ids) -> None:
        if len(ids) > self._max_candidates:
            raise InvalidRequest([Place("/ids", f"{len(ids)} candidates; at most {self._max_candidates}")])
        want = _TYPES[self._dtype]
        if isinstance(ids, np.ndarray):
            if ids.dtype.kind in "iu" and want is int:
                return
            raise InvalidRequest([Place("/ids", f"expected {self._dtype}, got {ids.dtype}")])
        if set(map(type, ids)) <= {want}:
            return
        raise InvalidRequest(
            Place(f"/ids/{at}", f"expected {self._dtype}, got {type(value).__name__}")
            for at, value in enumerate(ids)
            if type(value) is not want
        )

    def _numbers(self, ids: Ids) -> npt.NDArray[np.int64] | None:
        """(B,) checked ids as an array, where they can be one."""
        if isinstance(ids, np.ndarray):
            return ids.astype(np.int64, copy=False)
        if self._dtype == "str":
            return None
        try:
            return np.asarray(ids, np.int64)
        except OverflowError:
            return None

    def _write_row(
        self,
        request: Inputs,
        owner: Literal["user", "context"],
        given: Mapping[str, Any],
        places: list[Place],
        counts: _Counts,
    ) -> None:
        values, unknown = counts
        for name, value in given.items():
            key = f"{owner}.{name}"
            if key in self._schema.slots:
                if value is not None:
                    try:
                        unknown[key] += self._schema.write_one(request, key, value)
                        values[key] = len(value) if key in self._lists else 1
                    except FieldError as error:
                        places.append(Place(_pointer(owner, name), error.detail))
            elif key != "user.id":
                places.append(Place(_pointer(owner, name), "no such field"))
            elif type(value) not in {int, str, type(None)}:
                places.append(Place("/user/id", f"expected int or str, got {type(value).__name__}"))

    def _write_strangers(
        self, item: Inputs, ids: Ids, absent: npt.NDArray[np.bool_], unknown: Counter[str]
    ) -> None:
        """Ids without a row: nothing is known but the id itself, which may still have an embedding."""
        at = np.flatnonzero(absent)
        if not len(at):
            return
        unknown["item.id"] += len(at)
        if "item.id" in self._schema.slots:
            plain = ids.tolist() if isinstance(ids, np.ndarray) else ids
            self._schema.write(item, "item.id", list(compress(plain, absent.tolist())), at)

    def _write_columns(
        self,
        item: Inputs,
        columns: Mapping[str, Column],
        places: list[Place],
        counts: _Counts,
    ) -> None:
        values, unknown = counts
        for name, column in columns.items():
            key = f"item.{name}"
            if key == "item.id":
                places.append(Place("/items/id", "the candidates' ids are given once, in `ids`"))
            elif key not in self._schema.slots:
                places.append(Place(_pointer("items", name), "no such field"))
            elif len(column) != len(item):
                places.append(
                    Place(_pointer("items", name), f"{len(column)} values for {len(item)} candidates")
                )
            else:
                # Null leaves what the item table says.
                given = np.fromiter(map(_is_given, column), bool, len(column))
                at = np.flatnonzero(given)
                here = column if len(at) == len(column) else list(compress(column, given.tolist()))
                try:
                    unknown[key] += self._schema.write(item, key, here, at)
                    values[key] = sum(map(len, here)) if key in self._lists else len(here)
                except FieldError as error:
                    places.append(Place(_pointer("items", name, int(at[error.at])), error.detail))


def _pointer(*steps: str | int) -> str:
    """An RFC 6901 JSON pointer."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)

"""Tensors of the Open Inference Protocol, between the wire and numpy.

A tensor travels in JSON, flat or nested, or as bytes: little-endian, row-major, each element of BYTES after
its length in four bytes. What is announced is compared with what is there before anything is made of it, and
bytes of numbers are read where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract.errors import RequestError

Values = npt.NDArray[Any] | list[str]
"""The elements of a tensor in row-major order: numbers, or the texts of BYTES."""

BYTES = "BYTES"
NUMBERS: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The datatypes but BYTES."""
_IN_JSON: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
}
"""What an element is in JSON, by the kind of its dtype. Exact types, so that true is no integer."""
_LENGTH = Struct("<I")


_BOUNDS = {
    name: (int(np.iinfo(dtype).min), min(int(np.iinfo(dtype).max), int(np.iinfo(np.int64).max)))
    for name, dtype in NUMBERS.items()
    if dtype.kind in "iu"
}
"""By datatype of integers, the least and the greatest that are taken."""
_NOTHING = (1, 0)


class Malformed(RequestError):
    """A body that cannot be taken apart."""


class TensorError(RequestError):
    """A tensor is not what it says it is; the text says in one line how."""


def from_json(datatype: str, shape: Sequence[int], data: list[Any]) -> Values:
    """The elements of a tensor that JSON holds, flat or nested as its shape.

    Raises:
        TensorError: the data is not of this datatype and shape.
    """
    low, high = _BOUNDS.get(datatype, _NOTHING)
    if len(data) == 1 and [*shape] == [1] and type(data[0]) is int and low <= data[0] <= high:
        return data  # a request has a dozen of them, and an array each takes longer than all else here
    if datatype == "FP16":
        raise TensorError("FP16 cannot travel in JSON, only as binary data")
    if datatype != BYTES:
        dtype = _dtype(datatype)
        wanted = _IN_JSON[dtype.kind]
    else:
        dtype, wanted = None, frozenset({str})
    flat = _flat(data, shape)
    if not wanted.issuperset(map(type, flat)):
        at, element = next((at, each) for at, each in enumerate(flat) if type(each) not in wanted)
        raise TensorError(f"element {at} is {_name(element)}, not {datatype}")
    if dtype is None:
        return flat
    try:
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused as that
            return _finite(np.array(flat, dtype))
    except OverflowError:
        raise TensorError(f"an element does not fit {datatype}") from None


def from_bytes(datatype: str, shape: Sequence[int], body: bytes, at: int, size: int) -> Values:
    """The elements of a tensor that are `size` bytes of a body; a view of them, unless they are BYTES.

    Args:
        datatype: of the elements.
        shape: of the tensor.
        body: has these bytes, and others.
        at: where they begin.
        size: how many there are; the body has so many.

    Raises:
        TensorError: the bytes are not of this datatype and shape.
    """
    count = math.prod(shape)
    if datatype == BYTES:
        return _texts(body, at, size, count)
    dtype = _dtype(datatype)
    if count * dtype.itemsize != size:
        raise TensorError(
            f"{datatype} of shape {[*shape]} takes {count * dtype.itemsize} bytes, and {size} are announced"
        )
    if not count:
        return np.empty(0, dtype)
    if dtype.kind == "b" and np.frombuffer(body, np.uint8, count, at).max() > 1:
        raise TensorError("an element of BOOL is neither 0 nor 1")
    return _finite(np.frombuffer(body, dtype, count, at))


def to_json(values: Values) -> list[Any]:
    """Elements as JSON holds them, flat."""
    plain: list[Any] = values if isinstance(values, list) else values.tolist()
    return plain


def to_bytes(values: Values) -> bytes:
    """Elements as bytes."""
    if not isinstance(values, list):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [text.encode() for text in values]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(text)), text) for text in texts))


def _dtype(datatype: str) -> np.dtype[Any]:
    try:
        return NUMBERS[datatype]
    except KeyError:
        raise TensorError(f"the datatype must be one of {', '.join((*NUMBERS, BYTES))}") from None


def _flat(data: list[Any], shape: Sequence[int]) -> list[Any]:
    level = data
    for depth, size in enumerate(shape[1:], 1):
        if not level or type(level[0]) is not list:
            break
        if len(level) != math.prod(shape[:depth]) or not all(
            type(part) is list and len(part) == size for part in level
        ):
            raise TensorError(f"the data is not nested as its shape {[*shape]}")
        level = list(chain.from_iterable(level))
    if len(level) != math.prod(shape):
        raise TensorError(f"the shape {[*shape]} has {math.prod(shape)} elements, and the data {len(level)}")
    return level


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            raise TensorError(f"element {int(finite.argmin())} is not a finite number")
    return values


def _texts(body: bytes, at: int, size: int, count: int) -> list[str]:
    if count * _LENGTH.size > size:
        raise TensorError(f"{count} elements of BYTES take more than the {size} bytes announced")
    whole = body[at : at + size]
    # Mostly, lengths included, all are ASCII, and decoded at once.
    source = whole.decode("ascii") if whole.isascii() else whole
    length_at, texts, at = _LENGTH.unpack_from, [], 0
    try:
        for _ in range(count):
            begin = at + _LENGTH.size
            at = begin + length_at(whole, at)[0]
            texts.append(source[begin:at])
    except StructError:
        at = -1
    if at != size:
        raise TensorError(f"{count} elements of BYTES do not take the {size} bytes announced")
    try:
        return [text if isinstance(text, str) else text.decode() for text in texts]
    except UnicodeDecodeError:
        raise TensorError("an element of BYTES is not UTF-8") from None


def _name(element: Any) -> str:  # noqa: ANN401 - whatever JSON held
    return "null" if element is None else type(element).__name__

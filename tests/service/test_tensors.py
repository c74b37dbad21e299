"""Tensors on the wire: the protocol's own examples, round trips, and everything that is not one."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.api import tensors
from service.api.tensors import NUMBERS, TensorError

SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


def values_of(datatype):
    """Arrays of a datatype; finite, as no others are taken."""
    dtype = NUMBERS[datatype]
    return arrays.arrays(
        dtype, SHAPES, elements=arrays.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    )


NUMERIC = st.sampled_from([*NUMBERS]).flatmap(lambda name: st.tuples(st.just(name), values_of(name)))


@given(NUMERIC, st.binary(max_size=9), st.binary(max_size=9))
def test_numbers_as_bytes_come_back_wherever_they_lie(pair, before, after):
    datatype, array = pair
    body = tensors.to_bytes(array.ravel())
    assert body == array.astype(array.dtype.newbyteorder("<")).tobytes()
    found = tensors.from_bytes(datatype, array.shape, before + body + after, len(before), len(body))
    assert isinstance(found, np.ndarray)
    assert found.dtype == NUMBERS[datatype]
    assert found.tobytes() == body


@given(NUMERIC)
def test_numbers_in_json_come_back_flat_and_nested(pair):
    datatype, array = pair
    if datatype == "FP16":
        return
    for data in (tensors.to_json(array.ravel()), array.tolist()):
        found = tensors.from_json(datatype, array.shape, data)
        if isinstance(found, list):  # one integer is left as it is
            assert array.shape == (1,)
            assert [*map(type, found)] == [int]
        else:
            assert found.dtype == NUMBERS[datatype]
        assert np.array(found, NUMBERS[datatype]).tobytes() == array.tobytes()


@given(st.lists(TEXTS, max_size=6), st.binary(max_size=9))
def test_texts_come_back(texts, before):
    body = tensors.to_bytes(texts)
    assert tensors.from_bytes("BYTES", [len(texts)], before + body, len(before), len(body)) == texts
    assert tensors.from_json("BYTES", [len(texts)], tensors.to_json(texts)) == texts


@given(st.sampled_from([*NUMBERS, "BYTES"]), st.lists(st.integers(0, 2**63 - 1), max_size=3), st.binary())
def test_bytes_are_a_tensor_or_refused(datatype, shape, body):
    with suppress(TensorError):
        assert tensors.to_bytes(tensors.from_bytes(datatype, shape, body, 0, len(body))) == body


def test_numbers_are_read_where_they_lie():
    body = b"xyz" + np.arange(5, dtype="<i8").tobytes()
    found = tensors.from_bytes("INT64", [5], body, 3, 40)
    assert isinstance(found, np.ndarray)
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_the_protocols_examples():
    """UINT32 of [2, 2] is 16 bytes, BOOL of [3] is 3; row-major, little-endian, lengths before BYTES."""
    body = struct.pack("<4I", 1, 2, 3, 4) + b"\1\0\1"
    assert tensors.to_json(tensors.from_bytes("UINT32", [2, 2], body, 0, 16)) == [1, 2, 3, 4]
    assert tensors.to_json(tensors.from_bytes("BOOL", [3], body, 16, 3)) == [True, False, True]
    assert tensors.to_json(tensors.from_json("UINT32", [2, 2], [[1, 2], [3, 4]])) == [1, 2, 3, 4]
    assert tensors.from_bytes("BYTES", [2], b"\2\0\0\0hi\0\0\0\0", 0, 10) == ["hi", ""]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "why"),
    [
        ("INT64", [2], [1], "has 2 elements, and the data 1"),
        ("INT64", [2**62], [], "elements, and the data 0"),
        ("INT64", [2, 2], [[1, 2], [3]], "not nested as its shape"),
        ("INT64", [2, 2], [[1, 2], 3], "not nested as its shape"),
        ("INT64", [1, 2], [[1], [2]], "not nested as its shape"),
        ("INT64", [2, 1], [1, [2]], "element 1 is list"),
        ("INT64", [1], [[1]], "element 0 is list"),
        ("INT64", [1], [[]], "element 0 is list"),
        ("INT64", [2], [1, 1.0], "element 1 is float, not INT64"),
        ("INT64", [1], [True], "element 0 is bool, not INT64"),
        ("INT64", [1], [None], "element 0 is null, not INT64"),
        ("INT64", [1], [2**63], "an element does not fit INT64"),
        ("INT8", [1], [128], "an element does not fit INT8"),
        ("UINT8", [1], [-1], "an element does not fit UINT8"),
        ("BOOL", [1], [1], "element 0 is int, not BOOL"),
        ("FP16", [1], [1.0], "FP16 cannot travel in JSON"),
        ("FP32", [1], ["1"], "element 0 is str, not FP32"),
        ("FP32", [2], [0, 1e39], "element 1 is not a finite number"),
        ("FP64", [1], [10**400], "an element does not fit FP64"),
        ("FP64", [1], [float("nan")], "element 0 is not a finite number"),
        ("BYTES", [1], [1], "element 0 is int, not BYTES"),
        ("BF16", [1], [1.0], "the datatype must be one of BOOL, "),
        ("int64", [1], [1], "the datatype must be one of BOOL, "),
    ],
)
def test_json_that_is_no_such_tensor_is_refused(datatype, shape, data, why):
    with pytest.raises(TensorError, match=why):
        tensors.from_json(datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "body", "why"),
    [
        ("INT64", [1], b"1234567", "takes 8 bytes, and 7 are announced"),
        ("INT64", [0], b"12345678", "takes 0 bytes, and 8 are announced"),
        ("INT64", [2**62, 2**62], b"", "bytes, and 0 are announced"),
        ("BOOL", [2], b"\1\2", "neither 0 nor 1"),
        ("FP32", [2], struct.pack("<2f", 1, float("nan")), "element 1 is not a finite number"),
        ("FP16", [1], struct.pack("<e", float("inf")), "element 0 is not a finite number"),
        ("BYTES", [1], b"\1\0\0", "more than the 3 bytes announced"),
        ("BYTES", [1], b"\2\0\0\0a", "do not take the 5 bytes announced"),
        ("BYTES", [2], b"\4\0\0\0aaaa", "do not take the 8 bytes announced"),
        ("BYTES", [1], b"\0\0\0\0\0\0\0\0", "do not take the 8 bytes announced"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "do not take the 4 bytes announced"),
        ("BYTES", [2**62], b"\0\0\0\0", "more than the 4 bytes announced"),
        ("BYTES", [1], b"\1\0\0\0\xff", "not UTF-8"),
        ("FP8", [1], b"1", "the datatype must be one of BOOL, "),
    ],
)
def test_bytes_that_are_no_such_tensor_are_refused(datatype, shape, body, why):
    with pytest.raises(TensorError, match=why):
        tensors.from_bytes(datatype, shape, body, 0, len(body))

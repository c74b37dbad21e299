"""Sizes, counted by hand."""

import numpy as np
import pytest

from service.engines._buckets import Buckets, pad

SIZES = Buckets((128, 512, 1024))


@pytest.mark.parametrize(
    ("count", "size"),
    [(0, 128), (1, 128), (127, 128), (128, 128), (129, 512), (512, 512), (513, 1024), (1024, 1024)],
)
def test_the_smallest_size_that_holds_them(count, size):
    assert SIZES.fit(count) == size


def test_more_than_the_largest_fit_none():
    with pytest.raises(ValueError, match="1025 candidates are more than the largest size, 1024"):
        SIZES.fit(1025)


@pytest.mark.parametrize(
    ("count", "runs"),
    [
        (0, []),
        (1, [(0, 1, 128)]),
        (1024, [(0, 1024, 1024)]),
        (1025, [(0, 1024, 1024), (1024, 1025, 128)]),
        (1600, [(0, 1024, 1024), (1024, 1600, 1024)]),
        (2348, [(0, 1024, 1024), (1024, 2048, 1024), (2048, 2348, 512)]),
    ],
)
def test_runs_cover_them_in_order(count, runs):
    assert SIZES.split(count) == runs


@pytest.mark.parametrize("sizes", [(), (0,), (-1, 2), (2, 1), (2, 2)])
def test_sizes_ascend(sizes):
    with pytest.raises(ValueError, match="ascending"):
        Buckets(sizes)


def test_padding_is_zeros_over_whatever_was_there():
    into = np.full((4, 2), 7, np.int32)
    pad(np.arange(10, dtype=np.int32).reshape(5, 2), 1, 3, into)
    assert into.tolist() == [[2, 3], [4, 5], [0, 0], [0, 0]]

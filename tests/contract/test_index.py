"""`Index` against a plain dictionary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.index import Index

INT64 = st.integers(-(2**63), 2**63 - 1)
DENSE = st.integers(-50, 50)


@pytest.mark.parametrize("as_array", [False, True])
@given(st.data())
def test_positions_are_a_dictionarys(as_array, data):
    values = data.draw(
        st.sampled_from([INT64, DENSE, st.text(max_size=5).filter(lambda text: "\0" not in text)])
    )
    keys = data.draw(st.lists(values, unique=True, min_size=1))
    asked = data.draw(st.lists(st.one_of(values, st.sampled_from(keys)), min_size=1))
    expected = {key: at for at, key in enumerate(keys)}
    found = Index(np.asarray(keys)).positions(np.asarray(asked) if as_array else asked)
    assert found.dtype == np.int32
    assert found.tolist() == [expected.get(value, -1) for value in asked]


@pytest.mark.parametrize("keys", [[-(2**63), 2**63 - 1, 0], [2**63 - 1, 2**63 - 2], [-(2**63), -(2**63) + 1]])
def test_the_ends_of_int64_are_keys_like_others(keys):
    index = Index(np.asarray(keys))
    assert index.positions(keys).tolist() == list(range(len(keys)))
    assert index.positions([1, -1]).tolist() == [-1, -1]


def test_integers_beyond_int64_are_unknown():
    for keys in ([1, 2, 3], [1, 10**12]):  # a direct table, and a search
        assert Index(np.asarray(keys)).positions([10**30, 1, -(10**30)]).tolist() == [-1, 0, -1]


def test_nothing_is_in_an_empty_index():
    empty = Index(())
    assert len(empty) == 0
    assert empty.positions([1, 2]).tolist() == [-1, -1]
    assert empty.positions(["a"]).tolist() == [-1]
    assert empty.positions([]).tolist() == []

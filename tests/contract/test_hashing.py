"""Stable hashes. The golden file was written once; a change of it means retraining every model."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract import hashing

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hashing.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['value']!r}/{case['buckets']}")
def test_buckets_are_those_of_the_golden_file(case):
    assert hashing.bucket(case["value"], case["buckets"]) == case["bucket"]


@given(st.one_of(st.integers(), st.text()), st.integers(1, 2**40))
def test_a_bucket_is_in_range_and_an_integer_hashes_as_its_text(value, buckets):
    found = hashing.bucket(value, buckets)
    assert 0 <= found < buckets
    assert found == hashing.bucket(str(value), buckets)


def test_content_and_file_hashes_are_sha256(tmp_path):
    # The SHA-256 of b"abc" from FIPS 180-4, appendix.
    assert hashing.content(b"abc") == "ba7816bf8f01cfea"
    (tmp_path / "abc").write_bytes(b"abc")
    assert hashing.file(tmp_path / "abc") == hashlib.sha256(b"abc").hexdigest()

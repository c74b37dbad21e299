"""Stable hashes. Buckets are part of a trained model, so they never change: a golden file pins them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import xxhash


def bucket(value: int | str, buckets: int) -> int:
    """The bucket of a value, in [0, buckets): xxh3-64 of its text in UTF-8, modulo `buckets`."""
    return int(xxhash.xxh3_64_intdigest(str(value).encode()) % buckets)


def position(salt: str, unit: str) -> float:
    """Where a unit stands in [0, 1): the upper 53 bits of the xxh3-64 of `salt/unit` in UTF-8, over 2**53.

    Which part of that is the salt is never in doubt: no salt has a slash.
    """
    hashed: int = xxhash.xxh3_64_intdigest(f"{salt}/{unit}".encode("utf-8", "surrogatepass"))
    return (hashed >> 11) * 2.0**-53


def content(data: bytes | memoryview) -> str:
    """The version of immutable bytes: the first 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

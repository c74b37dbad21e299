"""Keys that stand twice in an object of JSON: Python's reader takes the last, and says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_Loc = tuple[int | str, ...]


class _Repeating(dict[str, Any]):
    """An object of JSON in which a key stands twice."""

    key = ""


def noting(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` of `json.loads`: the object, which knows what stands in it twice."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating, seen = _Repeating(found), set[str]()
    for key, _ in pairs:
        if key in seen:
            repeating.key = key
        seen.add(key)
    return repeating


def twice(value: object, place: _Loc = ()) -> Iterator[_Loc]:
    """Where keys are that stand twice in an object made by `noting`."""
    if isinstance(value, _Repeating):
        yield (*place, value.key)
    children: Iterable[tuple[int | str, object]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from twice(child, (*place, key))

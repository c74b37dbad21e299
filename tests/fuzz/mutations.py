"""Damage: to bytes, to JSON, to headers, to messages. It begins with something valid."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes, Sequence[bytes]], bytes]
"""From an input, and others of its target, to another input."""

LARGEST = 200_000
"""Bytes of an input: doubling what was doubled would never end."""
_EDGES = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63]
_TEXTS = [
    "",
    " ",
    "\x00",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "_general",
    "_items",
    "books",
    "a" * 65,
    "é",
    "\U0001f600",
    "\ud800",
    "%00",
    "\r\nX: y",
    "1e400",
    "NaN",
    "-1",
    "null",
    "9" * 5000,
    "{}",
    "x" * 5000,
]
_NUMBERS = [*_EDGES, *(-edge for edge in _EDGES), 2**64, 10**400, 0.5, -0.0, 1e30, 1e308, 5e-324]
_NOT_JSON = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-",
    b"01",
    b"1.",
    b'"\\ud800"',
    b'"\\u12"',
    b"\xff",
]
_HEADERS = [
    "X-Deadline-Ms",
    "X-Force-Arm",
    "X-Request-ID",
    "X-Session-ID",
    "X-API-Key",
    "Authorization",
    "traceparent",
    "tracestate",
    "Content-Type",
    "Content-Encoding",
    "Inference-Header-Content-Length",
]


_LENGTH = b"inference-header-content-length"


def damaged(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes flipped, inserted, removed, repeated, cut, or crossed with another input's."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(found) + 1)
        to = min(len(found), at + rng.choice((1, 1, 2, 4, 8, 64, 512)))
        kind = rng.randrange(8)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[at % len(found)] = rng.randrange(256)
        elif kind == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 3:
            del found[at:to]
        elif kind == 4:
            found[at:at] = found[at:to] * rng.choice((1, 2, 50))
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            size = rng.choice((1, 2, 4, 8))
            edge = rng.choice(_EDGES) % 2 ** (8 * size)
            found[at : at + size] = edge.to_bytes(size, rng.choice(("little", "big")))
        else:
            other = rng.choice(others) if others else b""
            begin = rng.randrange(len(other) + 1)
            found[at:to] = other[begin : begin + rng.choice((4, 64, 10_000))]
    return bytes(found[:LARGEST])


def spoiled(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """JSON with other values, keys and depths in it; sometimes no JSON any more."""
    if rng.random() < 0.2:
        return damaged(rng, data, others)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return damaged(rng, data, others)
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = _spoil(rng, tree)
    marked = rng.random() < 0.1
    if marked:
        tree = _replace(rng, tree, lambda _: "@mark@")
    try:
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return damaged(rng, data, others)
    if marked:
        deep = b"[" * 5000 + b"]" * 5000, b'{"a":' * 3000 + b"1" + b"}" * 3000
        text = text.replace(b'"@mark@"', rng.choice((*_NOT_JSON, *deep)))
    return text[:LARGEST]


def message(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Headers, an empty line and a body of JSON, each of them spoiled."""
    head, _, body = data.partition(b"\r\n\r\n")
    if rng.random() < 0.6:
        body = spoiled(rng, body, [other.partition(b"\r\n\r\n")[2] for other in others])
    if rng.random() < 0.5:
        head = headers(rng, head)
    return head + b"\r\n\r\n" + body


def tensors(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """As `message`, of a body in which bytes follow the JSON; mostly the header that says where is right."""
    head, _, body = data.partition(b"\r\n\r\n")
    told = dict(fields(head)).get(_LENGTH, b"")
    size = int(told) if told.isdigit() and len(told) < 9 else len(body)
    if rng.random() < 0.7:
        text, rest = body[:size], body[size:]
        if rng.random() < 0.7:
            text = spoiled(rng, text, [])
        if rng.random() < 0.4:
            rest = damaged(rng, rest, [])
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(_LENGTH)]
        head = b"\r\n".join([*kept, f"{_HEADERS[-1]}: {len(text)}".encode()])
        return head + b"\r\n\r\n" + text + rest
    return head + b"\r\n\r\n" + damaged(rng, body, []) if rng.random() < 0.5 else message(rng, data, others)


def headers(rng: Random, head: bytes) -> bytes:
    """Header lines with one more, one less, or one of another value."""
    lines = head.split(b"\r\n")
    kind = rng.randrange(4)
    if kind == 0 and len(lines) > 1:
        del lines[rng.randrange(len(lines))]
    elif kind == 1:
        lines.append(rng.choice(lines))
    elif kind == 2:
        at = rng.randrange(len(lines))
        name, colon, value = lines[at].partition(b":")
        lines[at] = name + colon + damaged(rng, value, []).replace(b"\r", b"").replace(b"\n", b"")
    else:
        value = str(rng.choice([*_NUMBERS[:-3], *_TEXTS])).encode("utf-8", "replace")
        lines.append(rng.choice(_HEADERS).encode() + b": " + value.replace(b"\r", b"").replace(b"\n", b""))
    return b"\r\n".join(lines)


def fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """Header lines as pairs, names in lower case."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n"))
    return [(name.strip().lower(), value.strip()) for name, colon, value in pairs if colon]


def _spoil(rng: Random, tree: Any) -> Any:  # noqa: C901 - a list of kinds
    """A copy of JSON with one place changed."""

    def other(value: Any) -> Any:  # noqa: PLR0911
        kind = rng.randrange(9)
        if kind == 0:
            return rng.choice(_NUMBERS)
        if kind == 1:
            return rng.choice(_TEXTS)
        if kind == 2:
            return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}])
        if kind == 3:
            return [value] * rng.choice((0, 1, 2, 300))
        if kind == 4 and isinstance(value, dict) and value:
            return {key: each for key, each in value.items() if key != rng.choice([*value])}
        if kind == 5 and isinstance(value, dict):
            return {**value, rng.choice([*_TEXTS, *value]): rng.choice([*value.values(), 1, None])}
        if kind == 6 and isinstance(value, list) and value:
            return [*value, rng.choice(value)] if rng.random() < 0.5 else value[: rng.randrange(len(value))]
        if kind == 7 and isinstance(value, int):
            return value + rng.choice((-1, 1, -value, -2 * value))
        if kind == 8 and isinstance(value, str):
            at = rng.randrange(len(value) + 1)
            return value[:at] + rng.choice(_TEXTS) + value[at + rng.randrange(3) :]
        return rng.choice([1, "x", None])

    return _replace(rng, tree, other)


def _replace(rng: Random, tree: Any, other: Callable[[Any], Any]) -> Any:
    """A copy with `other` of one place, the root or any below it."""
    inside = (
        [*tree.items()] if isinstance(tree, dict) else [*enumerate(tree)] if isinstance(tree, list) else []
    )
    if not inside or rng.random() < 0.15:
        return other(tree)
    key, value = rng.choice(inside)
    if isinstance(tree, dict):
        return {**tree, key: _replace(rng, value, other)}
    return [*tree[:key], _replace(rng, value, other), *tree[key + 1 :]]

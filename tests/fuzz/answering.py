"""Routes that score, in this process: headers and body go in where the protocol hands them over."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from service.api.direct import Answer, Direct
from service.contract.bundle import Bundle
from service.experiments import forced
from tests.fuzz.mutations import fields, message, tensors
from tests.fuzz.target import Fault, Target
from tests.service.conftest import Publisher, running
from tests.service.experiments import documents
from tests.service.test_oip import LENGTH, packed, tensor
from tests.service.waiting import eventually

_SECRET = "forced-0123456789abc"
_RANK = {
    "user": {"id": 2, "genres": ["drama", "crime"], "age": 45},
    "context": {"hour": 20},
    "ids": [10, 11, 99, 12345],
    "items": {"price": [5, 1.5, 2, None], "tags": [["old"], [], ["new", "old"], None]},
    "unit": "u1",
    "top_k": 3,
}
_HEADS = (
    b"Content-Type: application/json",
    b"X-Deadline-Ms: 1000",
    b"X-Request-ID: mine",
    b"X-Session-ID: s1",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
_EXPECTED = {200, 400, 403, 404, 413, 415, 422, 429, 504}


@contextmanager
def targets(bundle: Bundle) -> Iterator[list[Target]]:
    """Both routes of a service with experiments."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = documents.document([documents.experiment("x", targeting={"user.age": [45]})])
        (folder / "experiments.json").write_text(json.dumps(document))
        publish = Publisher(f"directory:{folder / 'store'}")
        publish.raw(dict(bundle.packs()))
        settings = {
            "experiments": str(folder / "experiments.json"),
            "force_secret": _SECRET,
            "max_body_bytes": 100_000,
            "max_candidates": 500,
            "log_format": "json",
        }
        with running(bundle, publish.url, **settings) as service:
            eventually(service.ready)
            rank, infer = service.client.app.state.direct  # type: ignore[attr-defined]
            head = forced.sign(_SECRET, "x", "b", 4_000_000_000).encode()
            heads = b"\r\n".join([*_HEADS, b"X-Force-Arm: " + head])
            whole = json.dumps(_RANK).encode()
            yield [
                Target(
                    "rank in JSON",
                    [heads + b"\r\n\r\n" + whole, _HEADS[0] + b'\r\n\r\n{"ids":[10]}'],
                    _asked(rank, "/v1/domains/books/rank", b'{"ids":[10,11,99]}'),
                    message,
                ),
                Target(
                    "infer with tensors",
                    [_infer(heads)],
                    _asked(infer, "/v2/models/tiny/infer", json.dumps(_plain()).encode()),
                    tensors,
                ),
            ]


def _plain() -> dict[str, Any]:
    return {"inputs": [tensor("ids", "INT64", [10, 11])], "parameters": {"domain": "books"}}


def _infer(heads: bytes) -> bytes:
    body, extra = packed(
        tensor("ids", "INT64", [10, 11]),
        tensor("user.id", "INT64", [2]),
        tensor("user.genres", "BYTES", ["crime", "drama"]),
        tensor("item.price", "FP32", [1.5, 2]),
        tensor("item.brand", "BYTES", ["acme", "zeta"]),
        outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}],
        id="1",
    )
    whole: bytes = heads + f"\r\n{LENGTH}: {extra[LENGTH]}\r\n\r\n".encode() + body
    return whole


def _asked(route: Direct, path: str, good: bytes) -> Callable[[bytes], None]:
    """Asks a route; after each wrong request a good one, whose answer is to have the same scores."""
    given = {b"content-type": b"application/json", b"x-request-id": b"mine"}

    def ask(headers: dict[bytes, bytes], body: bytes) -> Answer | None:
        return route.now(path, headers, body, perf_counter())

    first = ask(given, good)
    assert first is not None

    def read(data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        answer = ask(dict(fields(head)), body)
        if answer is None:
            return  # the pack of another domain would have to be waited for
        if answer.status not in _EXPECTED:
            raise Fault(f"the answer is {answer.status}")
        for name, value in answer.headers:
            if b"\r" in name + value or b"\n" in name + value:
                raise Fault(f"an answer's header {name!r} has the end of a line in it")
        if answer.status != 200:
            json.loads(answer.body)
        again = ask(given, good)
        if again is None or again.body != first.body:
            raise Fault("another answer to the same request")

    return read

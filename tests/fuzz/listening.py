"""A service as others reach it: bytes on a connection, whatever they are."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from loadtest.server import service
from service.contract.bundle import Bundle
from tests.fuzz.mutations import damaged, headers, message
from tests.fuzz.target import Fault, Target
from tests.service.conftest import Publisher

ADMIN = "admin-0123456789abcdef"
_QUIET = 0.04
"""Seconds of silence after which no more of an answer is expected: the rest of the request is waited for."""
_PATIENCE = 5.0
"""Seconds within which a good request is answered."""
_GOOD = (
    b"POST /v1/domains/books/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"X-Request-ID: mine\r\nX-Deadline-Ms: 5000\r\nConnection: close\r\nContent-Length: 18\r\n\r\n"
    b'{"ids":[10,11,99]}'
)
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_MORE = 20
"""Of so many inputs, one is followed by a good request on another connection."""
_SMUGGLING = [
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length: 0x5",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: gzip, chunked",
    b"X: y\r\n folded",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rZ: z",
    b"Host: y",
    b"Expect: 100-continue",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
    b"Content-Encoding: gzip",
    b": empty",
    b"\x00: nul",
    b"X: \x00",
]
_CHUNKS = [
    b"5\r\nabcde\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"5;x=y\r\nabcde\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"5\nabcde\n",
]


def post(path: str, body: bytes, *more: bytes) -> bytes:
    """A request as bytes."""
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Content-Type: application/json", *more]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""]) + body


_CHUNKED = (
    b"POST /v1/domains/books/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Transfer-Encoding: chunked\r\n\r\n6\r\n{"ids"\r\n7\r\n:[10]} \r\n0\r\n\r\n'
)
_SEEDS = [
    _GOOD,
    post("/v1/domains/books/rank", b'{"ids":[10]}') + b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n",
    _CHUNKED,
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/domains HTTP/1.1\r\nHost: x\r\nX-API-Key: abc\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
]
_EVENTS = json.dumps(
    {
        "events": [
            {"user": 42, "domain": "books", "item": 7, "kind": "shown"},
            {
                "user": "42",
                "domain": "books",
                "item": "7",
                "kind": "click",
                "time": 1767225600.5,
                "request_id": "a-1",
            },
        ]
    }
).encode()
_PROMOTE = b'{"versions":{"films":"0123456789abcdef"},"by":"x"}'


@contextmanager
def targets(bundle: Bundle) -> Iterator[list[Target]]:
    """Bytes, and requests whose framing is right, to one service."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish = Publisher(f"directory:{folder / 'store'}")
        publish.raw(dict(bundle.packs()))
        settings = {
            "MDCTR_DRAIN_SECONDS": "0",
            "MDCTR_ADMIN_KEYS": json.dumps({"fuzz": ADMIN}),
            "MDCTR_USERS": "memory:",
            "MDCTR_MAX_BODY_BYTES": "100000",
        }
        with service(bundle.path, publish.url, folder / "log", settings) as url:
            port = int(url.rsplit(":", 1)[1])
            client = Client(port)
            head = b"Content-Type: application/json\r\nX-Request-ID: mine\r\n\r\n"
            key = b"X-API-Key: " + ADMIN.encode() + b"\r\n"
            yield [
                Target("HTTP/1.1 as bytes", _SEEDS, client.raw, _framing, traced=False),
                Target(
                    "events over HTTP",
                    [head + _EVENTS],
                    client.framed("POST", "/v1/events"),
                    message,
                    traced=False,
                ),
                Target(
                    "admin over HTTP",
                    [key + head + _PROMOTE],
                    client.framed("POST", "/v1/admin/promote"),
                    message,
                    traced=False,
                ),
            ]


class Client:
    """Asks a service, and now and then whether it still answers as it did."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._count = 0
        self._first = self._good()

    def raw(self, data: bytes) -> None:
        """Send them, and a good request behind them."""
        self._check(self._exchange(data + _GOOD))

    def framed(self, method: str, path: str) -> Callable[[bytes], None]:
        """Send headers and a body as a whole request, to a path."""

        def read(data: bytes) -> None:
            head, _, body = data.partition(b"\r\n\r\n")
            first = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
            length = b"\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._check(self._exchange(first + head + length + body))

        return read

    def _check(self, answers: bytes) -> None:
        for status in _STATUS.findall(answers):
            if status.startswith(b"5") and status not in {b"503", b"504"}:
                raise Fault(f"the answer is {status.decode()}")
        self._count += 1
        if self._count % _MORE == 0 and self._good() != self._first:
            raise Fault("another answer to the same request")

    def _good(self) -> bytes:
        answer = self._exchange(_GOOD, quiet=_PATIENCE)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise Fault(f"a good request is answered by {answer[:40]!r}")
        return answer.partition(b"\r\n\r\n")[2]

    def _exchange(self, data: bytes, quiet: float = _QUIET) -> bytes:
        """What is answered until the connection ends, or nothing comes any more."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self._port), _PATIENCE) as connection:
            with suppress(ConnectionError):  # refused, and closed, before all of it was sent
                connection.sendall(data)
            connection.settimeout(quiet)
            with suppress(TimeoutError, ConnectionError):
                while more := connection.recv(1 << 16):
                    answer += more
        return answer


def _framing(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A request whose framing is doubtful, or that is followed by another, or that is damaged anywhere."""
    kind = rng.randrange(6)
    head, end, body = data.partition(b"\r\n\r\n")
    if kind == 0:
        return head + b"\r\n" + rng.choice(_SMUGGLING) + end + body
    if kind == 1:
        return head + b"\r\nTransfer-Encoding: chunked" + end + b"".join(rng.choices(_CHUNKS, k=3)) + body
    if kind == 2:
        return data + rng.choice(others)
    if kind == 3:
        return headers(rng, head) + end + body
    if kind == 4:
        return data.replace(
            b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\n\r")), rng.randrange(1, 5)
        )
    return damaged(rng, data, others)

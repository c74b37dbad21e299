"""`Closed`: a closed-loop client. The next request follows the last answer, so it measures work."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import numpy.typing as npt

from loadtest.fleet import BenchError

_PATIENCE = 30.0
"""Seconds after which an answer will not come."""


class Closed:
    """So many connections to one server of this machine, each with one request under way."""

    def __init__(self, port: int, connections: int = 1) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        for _ in range(connections):
            one = socket.create_connection(("127.0.0.1", port), _PATIENCE)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(one, selectors.EVENT_READ, one)
            self._sockets.append(one)

    def close(self) -> None:
        """Close the connections."""
        for each in self._sockets:
            each.close()
        self._selector.close()

    def ask(self, http: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to one request, on the first connection."""
        self._sockets[0].sendall(http)
        return answer(self._sockets[0])

    def run(self, requests: Sequence[bytes], seconds: float) -> tuple[float, npt.NDArray[np.float64]]:
        """Ask for so long; gives answers a second, and the seconds (n,) that each answer took.

        What is under way at the end counts, too, and so does its time: else slow answers would be left out.

        Raises:
            BenchError: an answer was not 200, or did not come.
        """
        turn = cycle(requests)
        sent: dict[socket.socket, float] = {}
        took: list[float] = []
        began = now = time.perf_counter()
        for one in self._sockets:
            sent[one] = time.perf_counter()
            one.sendall(next(turn))
        under_way = len(self._sockets)
        while under_way:
            ready = self._selector.select(_PATIENCE)
            if not ready:
                raise BenchError(f"{under_way} requests have no answer after {_PATIENCE:g} s")
            for key, _ in ready:
                one = key.data
                status, content = answer(one)
                now = time.perf_counter()
                if status != 200:
                    raise BenchError(f"the server answered {status}: {content[:300]!r}")
                took.append(now - sent[one])
                if now - began <= seconds:
                    sent[one] = now
                    one.sendall(next(turn))
                else:
                    under_way -= 1
        return len(took) / (now - began), np.array(took)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read status and body of one HTTP answer.

    Raises:
        BenchError: the connection was closed first.
    """
    data = connection.recv(65536)
    while (head := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection)
    lower = data[:head].lower()
    start = lower.find(b"content-length:")
    length = int(lower[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
    while len(data) < head + 4 + length:
        data += _more(connection)
    return int(data[9:12]), data[head + 4 :]


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise BenchError("the server closed the connection")
    return data

"""`send`: an open-loop sender of bodies built beforehand, in a process of its own.

Requests are due at given moments, whether or not earlier ones are answered (Schroeder et al., NSDI 2006): a
request that finds every connection busy waits, and its latency counts from the moment it was due, so that a
slow server cannot slow the clock it is measured by.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uvloop

_RECONNECT = 0.02
"""Seconds before a connection that was lost is opened again."""
_GRACE = 10.0
"""Seconds after the last request is due that answers are waited for."""


@dataclass(frozen=True)
class Plan:
    """What to send when."""

    port: int
    connections: int
    requests: Sequence[bytes]
    """Whole HTTP requests, head and body."""
    due: npt.NDArray[np.float64]
    """(n,) seconds after the start, ascending."""
    which: npt.NDArray[np.int64]
    """(n,) positions in `requests`."""
    keep: bool = False
    """Whether answers are kept, and not just their status."""


@dataclass
class Record:
    """What became of each request."""

    status: npt.NDArray[np.int64]
    """(n,) HTTP status; 0 where the connection was lost, -1 where no answer came."""
    latency: npt.NDArray[np.float64]
    """(n,) seconds from the moment due to the answer's last byte; nan without an answer."""
    late: npt.NDArray[np.float64]
    """(n,) seconds from the moment due to the sending."""
    worker: npt.NDArray[np.int64]
    """(n,) the process at the other end of the connection; 0 where it was not asked."""
    started: float
    """`time.time()` of the start."""
    answers: list[bytes] = field(default_factory=list)
    """(n,) bodies, if they are kept."""


class Sending:
    """A sender that runs."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Start it in `folder`, which holds its plan and its record."""
        self._record = folder / "record.pickle"
        (folder / "plan.pickle").write_bytes(pickle.dumps(plan))
        self._process = subprocess.Popen([sys.executable, "-m", "loadtest.sender", str(folder)])

    def wait(self) -> Record:
        """Its record, once it is done.

        Raises:
            RuntimeError: it failed.
        """
        if self._process.wait():
            raise RuntimeError("the sender failed")
        record: Record = pickle.loads(self._record.read_bytes())  # noqa: S301 - our own process wrote it
        return record

    def stop(self) -> None:
        """End it, done or not."""
        self._process.kill()
        self._process.wait()


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """An HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._at: int | None = None
        self.worker = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        # Who is at the other end is asked first: a lost connection can then be told from a lost worker.
        self._transport.write(request("GET", "/info"))  # type: ignore[union-attr]

    def send(self, at: int, data: bytes) -> None:
        self._at = at
        self._transport.write(data)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[start + 15 : self._buffer.find(b"\r\n", start)]) if start >= 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        status, body = int(self._buffer[9:12]), bytes(self._buffer[head + 4 : head + 4 + length])
        closing = b"connection: close" in self._buffer[:head].lower()
        self._buffer.clear()
        at, self._at = self._at, None
        if at is None:
            found = body.find(b'"worker":')
            self.worker = int(body[found + 9 :].split(b",")[0].split(b"}")[0]) if found >= 0 else 0
        else:
            self._run.answered(at, status, body, self.worker)
        if closing and self._transport is not None:
            self._transport.close()
        else:
            self._run.free(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's protocol
        self._run.lost(self, self._at)


class _Run:
    """The sender's own process."""

    def __init__(self, plan: Plan) -> None:
        n = len(plan.due)
        self.plan = plan
        self.record = Record(
            np.full(n, -1), np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.int64), 0.0, [b""] * n
        )
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[int] = deque()
        self.open = True
        self.left = n
        self._connecting: set[asyncio.Task[None]] = set()

    async def __call__(self) -> Record:
        loop = asyncio.get_running_loop()
        self.loop = loop
        for _ in range(self.plan.connections):
            await self._connect()
        await asyncio.sleep(0.2)
        self.record.started = time.time()
        self.start = loop.time()
        due = self.plan.due
        for at, moment in enumerate(due):
            wait = self.start + moment - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            self.waiting.append(at)
            self._dispatch()
        until = loop.time() + _GRACE
        while self.left and loop.time() < until:
            await asyncio.sleep(0.01)
        self.open = False
        return self.record

    async def _connect(self) -> None:
        while self.open:
            try:
                transport, _ = await self.loop.create_connection(
                    lambda: _Connection(self), "127.0.0.1", self.plan.port
                )
            except OSError:
                await asyncio.sleep(_RECONNECT)
            else:
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return

    def _dispatch(self) -> None:
        while self.waiting and self.idle:
            at = self.waiting.popleft()
            connection = self.idle.popleft()
            self.record.late[at] = self.loop.time() - self.start - self.plan.due[at]
            self.record.worker[at] = connection.worker
            connection.send(at, self.plan.requests[self.plan.which[at]])

    def free(self, connection: _Connection) -> None:
        self.idle.append(connection)
        self._dispatch()

    def answered(self, at: int, status: int, body: bytes, worker: int) -> None:
        self.left -= 1
        self.record.status[at] = status
        self.record.worker[at] = worker
        self.record.latency[at] = self.loop.time() - self.start - self.plan.due[at]
        if self.plan.keep:
            self.record.answers[at] = body

    def lost(self, connection: _Connection, at: int | None) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        if at is not None:
            self.left -= 1
            self.record.status[at] = 0
        if self.open:
            task = self.loop.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)


def main(folder: Path) -> None:
    """Carry out the plan in a folder."""
    plan: Plan = pickle.loads((folder / "plan.pickle").read_bytes())  # noqa: S301 - our own process wrote it
    record = uvloop.run(_Run(plan)())
    (folder / "record.pickle").write_bytes(pickle.dumps(record))


if __name__ == "__main__":
    # Under its own name, or what is pickled here could not be read elsewhere.
    from loadtest.sender import main as run

    run(Path(sys.argv[1]))

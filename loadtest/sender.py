"""`send`: an open-loop sender of bodies built beforehand, in a process of its own.

Requests are due at given moments, whether or not earlier ones are answered (Schroeder et al., NSDI 2006): a
request that finds every connection busy waits, and its latency counts from the moment it was due, so that a
slow server cannot slow the clock it is measured by. What the sender is late itself is reported, too.

One process sends some ten thousand small requests a second; `Senders` are several.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import uvloop

_RECONNECT = 0.02
"""Seconds before a connection that was lost is opened again."""
_GRACE = 10.0
"""Seconds after the last request is due that answers are waited for."""
_NEAR = 0.002
"""Seconds before a request is due that a sender which spins no longer sleeps: timers count milliseconds."""
_TURN = 8
"""Requests after which answers are read, even by a sender that is late."""
_TOGETHER = 1.5
"""Seconds that several senders may take to start."""
LOST, UNANSWERED, GIVEN_UP = 0, -1, -2
"""Instead of a status: the connection was lost; no answer came; the deadline passed before it was sent."""


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
    deadline: float | None = None
    """Seconds after the moment due at which an answer is of no more use. The server is told what is left of
    them, in `X-Deadline-Ms`; a request that still waits for a connection then is never sent."""
    spin: bool = False
    """Wait for the moment with the processor, to the microsecond; for a sender with a core of its own."""
    identify: bool = True
    """Ask each new connection first which worker is at its other end, with `GET /info`."""
    start: float = 0.0
    """`time.time()` of the start; by default when connected."""
    grace: float = _GRACE
    """Seconds after the last request is due that answers are waited for."""


@dataclass
class Record:
    """What became of each request."""

    status: npt.NDArray[np.int64]
    """(n,) HTTP status; else `LOST`, `UNANSWERED` or `GIVEN_UP`."""
    latency: npt.NDArray[np.float64]
    """(n,) seconds from the moment due to the answer's last byte; nan without an answer."""
    late: npt.NDArray[np.float64]
    """(n,) seconds from the moment due to the sending, for whatever reason."""
    worker: npt.NDArray[np.int64]
    """(n,) the process at the other end of the connection; 0 where it was not asked."""
    started: float
    """`time.time()` of the start."""
    lag: npt.NDArray[np.float64]
    """(n,) seconds of that which are the sender's own, and not a wait for a free connection."""
    answers: list[bytes] = field(default_factory=list)
    """(n,) bodies, if they are kept."""

    def statuses(self) -> dict[int, int]:
        """How many requests ended with each status."""
        return dict(sorted(Counter(self.status.tolist()).items()))


class Senders:
    """Several senders that share a plan; together they send what one could not."""

    def __init__(self, plan: Plan, folder: Path, count: int = 1) -> None:
        """Start so many in folders under `folder`, which take the plan's requests in turn."""
        self._plan, self._count = plan, count
        start = time.time() + _TOGETHER if count > 1 else plan.start
        connections = max(1, plan.connections // count)
        self._each = []
        for at in range(count):
            mine = slice(at, None, count)
            (folder / str(at)).mkdir(parents=True)
            part = replace(
                plan, due=plan.due[mine], which=plan.which[mine], start=start, connections=connections
            )
            self._each.append(Sending(part, folder / str(at)))

    def wait(self) -> Record:
        """What became of each request, in the plan's order.

        Raises:
            RuntimeError: a sender failed.
        """
        records = [sending.wait() for sending in self._each]
        n = len(self._plan.due)
        whole = _blank(n)
        whole.started = records[0].started
        for at, part in enumerate(records):
            for name in ("status", "latency", "late", "worker", "lag"):
                getattr(whole, name)[at :: self._count] = getattr(part, name)
            whole.answers[at :: self._count] = part.answers
        return whole

    def stop(self) -> None:
        """End them, done or not."""
        for sending in self._each:
            sending.stop()


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


def poisson(rate: float, seconds: float, seed: int = 0) -> npt.NDArray[np.float64]:
    """Moments (n,) at which requests are due that come independently of each other, `rate` a second."""
    draw = np.random.default_rng(seed)
    most = int(rate * seconds + 6 * np.sqrt(rate * seconds) + 10)
    due = np.cumsum(draw.exponential(1 / rate, most))
    return np.asarray(due[due < seconds])


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """An HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _blank(n: int) -> Record:
    return Record(
        status=np.full(n, UNANSWERED),
        latency=np.full(n, np.nan),
        late=np.full(n, np.nan),
        worker=np.zeros(n, np.int64),
        started=0.0,
        lag=np.full(n, np.nan),
        answers=[b""] * n,
    )


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._at: int | None = None
        self.worker = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._run.plan.identify:
            # Asked first: a lost connection can then be told from a lost worker.
            self._transport.write(request("GET", "/info"))
        else:
            self._run.free(self)

    def send(self, at: int, data: bytes) -> None:
        self._at = at
        self._transport.write(data)

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
        if closing:
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
        self.record = _blank(n)
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
        await asyncio.sleep(max(0.2, self.plan.start - time.time()))
        self.record.started = time.time()
        self.start = time.perf_counter()
        for at, moment in enumerate(self.plan.due.tolist()):
            await self._until(self.start + moment)
            if at % _TURN == 0:
                await asyncio.sleep(0)  # who is late reads answers, too
            self.record.lag[at] = time.perf_counter() - self.start - moment
            self.waiting.append(at)
            self._dispatch()
        until = loop.time() + self.plan.grace
        while self.left and loop.time() < until:
            await asyncio.sleep(0.01)
        self.open = False
        return self.record

    async def _until(self, moment: float) -> None:
        wait = moment - time.perf_counter()
        if not self.plan.spin:
            if wait > 0:
                await asyncio.sleep(wait)
            return
        while wait > 0:
            await asyncio.sleep(wait - _NEAR if wait > 2 * _NEAR else 0)
            wait = moment - time.perf_counter()

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
            late = time.perf_counter() - self.start - self.plan.due[at]
            data = self.plan.requests[self.plan.which[at]]
            if self.plan.deadline is not None:
                left = self.plan.deadline - late
                if left <= 0:
                    self.left -= 1
                    self.record.status[at] = GIVEN_UP
                    continue
                data = _with_deadline(data, left)
            connection = self.idle.popleft()
            self.record.late[at] = late
            self.record.worker[at] = connection.worker
            connection.send(at, data)

    def free(self, connection: _Connection) -> None:
        self.idle.append(connection)
        self._dispatch()

    def answered(self, at: int, status: int, body: bytes, worker: int) -> None:
        self.left -= 1
        self.record.status[at] = status
        self.record.worker[at] = worker
        self.record.latency[at] = time.perf_counter() - self.start - self.plan.due[at]
        if self.plan.keep:
            self.record.answers[at] = body

    def lost(self, connection: _Connection, at: int | None) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        if at is not None:
            self.left -= 1
            self.record.status[at] = LOST
        if self.open:
            task = self.loop.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)


def _with_deadline(data: bytes, seconds: float) -> bytes:
    first, _, rest = data.partition(b"\r\n")
    return b"%b\r\nX-Deadline-Ms: %.2f\r\n%b" % (first, seconds * 1e3, rest)


def main(folder: Path) -> None:
    """Carry out the plan in a folder."""
    plan: Plan = pickle.loads((folder / "plan.pickle").read_bytes())  # noqa: S301 - our own process wrote it
    record = uvloop.run(_Run(plan)())
    (folder / "record.pickle").write_bytes(pickle.dumps(record))


if __name__ == "__main__":
    # Under its own name, or what is pickled here could not be read elsewhere.
    from loadtest.sender import main as run

    run(Path(sys.argv[1]))

"""`Load`: requests at given moments to one server, and what their answers say of it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.closed import Closed
from loadtest.cores import Cores, on
from loadtest.fleet import BenchError
from loadtest.sender import GIVEN_UP, LOST, UNANSWERED, Plan, Record, Senders, poisson, request
from loadtest.server import free_port, listening

OK = 200
SHED = (429, 503, 504)
"""Refused for want of time: an answer, and not an error."""
_WINDOW = 0.2
"""Seconds over which answers of a busy server are counted."""
_CEILING_SECONDS = 1.5


@dataclass(frozen=True)
class Summary:
    """Of requests at one rate."""

    rate: float
    requests: int
    p50_ms: float
    p99_ms: float
    """Of the answers with 200, from the moment due."""
    answered: float
    """Share that was answered with 200."""
    shed: float
    errors: float
    """Share that was lost, unanswered, or answered with another status."""
    lag_p99_ms: float
    """The sender's own."""
    disturbed: float = 0.0
    """Share of the time in which the server was ready to run, and another process had its core."""

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


class Load:
    """A client of one server."""

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        cores: Cores,
        place: Path,
        *,
        connections: int = 64,
        senders: int = 1,
    ) -> None:
        """Nothing is sent yet.

        Args:
            port: the server's, on this machine.
            requests: HTTP, in turn by chance.
            cores: where the server runs, and where the senders do.
            place: a folder for what they leave.
            connections: of all senders together.
            senders: processes.
        """
        self.port, self.requests, self.cores = port, requests, cores
        self._place, self.connections, self.senders = place, connections, senders
        self._turn = itertools.count()
        self.workers: list[int] = []
        """Process ids, if they are known."""

    def start(
        self, due: npt.NDArray[np.float64], *, deadline: float | None = None, grace: float = 3.0
    ) -> Senders:
        """Begin to send requests due at these seconds from now."""
        turn = next(self._turn)
        which = np.random.default_rng(turn).integers(0, len(self.requests), len(due))
        plan = Plan(
            self.port,
            self.connections,
            self.requests,
            due,
            which,
            deadline=deadline,
            spin=self.cores.apart,
            identify=False,
            grace=grace,
        )
        with on(self.cores.client):
            return Senders(plan, self._place / f"{self.port}-{turn}", self.senders)

    def send(
        self, due: npt.NDArray[np.float64], *, deadline: float | None = None, grace: float = 3.0
    ) -> Record:
        """Send, and wait for what becomes of it."""
        sending = self.start(due, deadline=deadline, grace=grace)
        try:
            return sending.wait()
        finally:
            sending.stop()

    def at(self, rate: float, seconds: float) -> Summary:
        """Requests that come independently of each other, so many a second."""
        due = poisson(rate, seconds, next(self._turn))
        before, began = self._waited(), time.monotonic()
        record = self.send(due)
        disturbed = (self._waited() - before) / (time.monotonic() - began) / max(1, len(self.workers))
        return replace(summary(record, rate, settled(due)), disturbed=disturbed)

    def _waited(self) -> float:
        """Seconds that the workers have waited for a core in their lives."""
        found = [Path(f"/proc/{pid}/schedstat").read_text().split()[1] for pid in self.workers]
        return sum(map(int, found)) / 1e9

    def busy(self, seconds: float, connections: int) -> float:
        """Answers a second while the server is never without a request: the median over short windows."""
        with on(self.cores.client), closing(Closed(self.port, connections)) as client:
            client.run(self.requests, 0.3)
            rates = [client.run(self.requests, _WINDOW)[0] for _ in range(max(1, round(seconds / _WINDOW)))]
        return float(np.median(rates))

    def alone(self, seconds: float) -> float:
        """Median seconds of a request that meets no other."""
        with on(self.cores.client), closing(Closed(self.port)) as client:
            client.run(self.requests, 0.3)
            return float(np.median(client.run(self.requests, seconds)[1]))


def settled(due: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n,) all but the first tenth, in which a sender and a server find their pace."""
    return np.asarray(due >= due[-1] * 0.1) if len(due) else np.zeros(0, bool)


def summary(record: Record, rate: float, part: npt.NDArray[np.bool_]) -> Summary:
    """Of those requests of a record that `part` (n,) says."""
    status, latency, lag = record.status[part], record.latency[part], record.lag[part]
    good = status == OK
    if not len(status):
        raise BenchError("no request was due")
    p50, p99 = np.percentile(latency[good] * 1e3, [50, 99]) if good.any() else (np.inf, np.inf)
    shed = np.isin(status, SHED)
    errors = ~good & ~shed & (status != GIVEN_UP)
    known = lag[~np.isnan(lag)]
    return Summary(
        rate=rate,
        requests=len(status),
        p50_ms=float(p50),
        p99_ms=float(p99),
        answered=float(good.mean()),
        shed=float(shed.mean()),
        errors=float(errors.mean()),
        lag_p99_ms=float(np.percentile(known, 99) * 1e3) if len(known) else 0.0,
    )


def lost(record: Record) -> npt.NDArray[np.bool_]:
    """(n,) whether a request was sent and never answered."""
    return np.asarray(~np.isnan(record.late) & np.isin(record.status, (LOST, UNANSWERED)))


@contextmanager
def mirror(cores: frozenset[int]) -> Iterator[int]:
    """Run the server that does nothing; gives its port."""
    port = free_port()
    with on(cores):
        process = subprocess.Popen([sys.executable, "-m", "loadtest.mirror", str(port)])
    try:
        listening(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


def ceiling(cores: Cores, place: Path, senders: int = 1) -> float:
    """Small requests a second that the senders send at most, to a server that does nothing."""
    with mirror(cores.server) as port:
        load = Load(port, [request("POST", "/", b"{}")], cores, place, senders=senders)
        due = np.linspace(0, _CEILING_SECONDS, 300_000)
        record = load.send(due, grace=0.0)
    finished = record.latency + due
    inside = finished[~np.isnan(finished)]
    return float(((inside > 0.3) & (inside < _CEILING_SECONDS)).sum() / (_CEILING_SECONDS - 0.3))

"""`Fleet`: the workers of one service, asked one by one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from loadtest.sender import request
from service.contract.errors import MdctrError

_PATIENCE = 30.0
"""Seconds after which a worker that does not do what it should never will."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class BenchError(MdctrError):
    """A benchmark could not be carried out."""


class Fleet:
    """So many workers behind one address, of which the kernel gives a new connection to any."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size = url, size

    def workers(self, without: int = 0) -> set[int]:
        """The workers' process ids, once all of them answer.

        Args:
            without: one that does not count, because it was killed.

        Raises:
            BenchError: they do not, after a while.
        """
        seen: set[int] = set()
        until = time.monotonic() + _PATIENCE
        while len(seen) < self.size:
            if time.monotonic() > until:
                raise BenchError(f"{len(seen)} of {self.size} workers answer")
            seen |= {self.ask("/info")["worker"]} - {without}
        return seen

    async def converged(self, serving: Mapping[str, str]) -> float:
        """Seconds from now until every worker serves these versions.

        Raises:
            BenchError: one never does; the text says what it serves instead.
        """
        began = time.monotonic()
        right: set[int] = set()
        while len(right) < self.size:
            state = await asyncio.to_thread(self.ask, "/v1/domains")
            found = {each["domain"]: each["serving"] for each in state["domains"]}
            wrong = {
                domain: found.get(domain) for domain, want in serving.items() if found.get(domain) != want
            }
            if not wrong:
                right.add(state["worker"])
            elif time.monotonic() - began > _PATIENCE:
                wanted = {domain: serving[domain] for domain in wrong}
                raise BenchError(f"worker {state['worker']} serves {wrong}, not {wanted}")
        return time.monotonic() - began

    def ask(self, path: str) -> dict[str, Any]:
        """What one of them answers.

        Raises:
            BenchError: none does, after a while.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                with httpx2.Client() as client:
                    found: dict[str, Any] = client.get(f"{self.url}{path}", timeout=5).json()
                    return found
            except httpx2.TransportError as error:  # it was killed
                if time.monotonic() > until:
                    raise BenchError(f"{self.url}{path}: {error}") from error
                time.sleep(0.01)

    async def connections(self) -> list[Connection]:
        """A connection to each of them."""
        host, port = self.url.removeprefix("http://").split(":")
        found: dict[int, Connection] = {}
        while len(found) < self.size:
            opened = await asyncio.open_connection(host, int(port))
            worker = json.loads(await ask(opened, request("GET", "/info")))["worker"]
            if worker in found:
                opened[1].close()
            else:
                found[worker] = opened
        return list(found.values())


async def ask(connection: Connection, http: bytes) -> bytes:
    """The body of the answer to a request."""
    reader, writer = connection
    writer.write(http)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.partition(b":")[2]))


def megabytes(pid: int) -> float:
    """A process's memory: its own pages, and its share of those that others map, too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

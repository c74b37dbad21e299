"""A tiny HTTP server that does to each request what the request asks for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Answering:
    """`/wait/MS` answers so much later, `/cut` closes the connection, `/status/N` answers with it.

    With `one_at_a_time`, requests of all connections wait for each other, as in a single server.
    """

    one_at_a_time: bool = False
    port: int = 0
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    line for line in head.lower().split("\r\n") if line.startswith("content-length")
                )
                await reader.readexactly(int(length.partition(":")[2]))
                self.heads.append(head)
                _, kind, *rest = head.split()[1].split("/")
                status = 200
                if kind == "cut":
                    break
                if kind == "wait":
                    async with self._turn:
                        await asyncio.sleep(float(rest[0]) / 1e3)
                elif kind == "status":
                    status = int(rest[0])
                body = b'{"worker":77,"probabilities":[]}'
                more = "Connection: close\r\n" if kind == "close" else ""
                top = f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n"
                writer.write(top.encode() + body)

    async def run(self, ready: threading.Event) -> None:
        self._turn = asyncio.Semaphore(1 if self.one_at_a_time else 10_000)
        self.stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self.stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # for connections to close


@contextmanager
def answering(*, one_at_a_time: bool = False) -> Iterator[Answering]:
    found, ready = Answering(one_at_a_time), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(found.run(ready)))
    thread.start()
    ready.wait(10)
    try:
        yield found
    finally:
        found.loop.call_soon_threadsafe(found.stop.set)
        thread.join(10)

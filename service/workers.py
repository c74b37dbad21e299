"""`Workers`: several processes that answer on one port, kept alive and told to stop together."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from types import FrameType

import structlog

from service.contract.errors import SettingsError
from service.server import Server
from service.settings import Settings
from service.telemetry import configure_logs, worker_ended

_LOOK = 0.5
"""Seconds between two looks at whether a worker that ended may be started again."""
_FIRST_REST, _LONGEST_REST = 0.1, 5.0
"""Seconds before a worker that ended is started again: the first time, and at most if it ends at once."""
_LASTED = 30.0
"""Seconds after which a worker that ends has not ended at once."""

log = structlog.get_logger()


class Workers:
    """The parent: it answers nothing itself.

    Each worker listens on a socket of its own on the same port, and the kernel spreads connections over
    them: a worker that is killed takes no connection with it that another could have had.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = get_context("spawn")
        self._processes: dict[int, tuple[SpawnProcess, float]] = {}
        """By place, the process there and when it was started."""
        self._rest = dict.fromkeys(range(settings.workers), _FIRST_REST)
        self._stopping = False

    def run(self) -> None:
        """Until told to stop.

        Raises:
            SettingsError: the port is somebody else's.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with _reserved(self._settings.host, self._settings.port) as (family, port):
            self._family, self._port = family, port
            log.info("listens", host=self._settings.host, port=port, workers=self._settings.workers)
            due = dict.fromkeys(range(self._settings.workers), 0.0)
            while due or self._processes:
                for place in [place for place, when in due.items() if when <= time.monotonic()]:
                    del due[place]
                    if not self._stopping:
                        self._start(place)
                if self._stopping:
                    due.clear()
                connection.wait([process.sentinel for process, _ in self._processes.values()], _LOOK)
                due |= self._ended()

    def _start(self, place: int) -> None:
        process = self._context.Process(target=_work, args=(self._settings, self._family, self._port))
        process.start()
        self._processes[place] = process, time.monotonic()
        log.info("worker starts", worker=process.pid)
        if self._stopping and process.pid is not None:  # told while it was being made
            os.kill(process.pid, signal.SIGTERM)

    def _ended(self) -> dict[int, float]:
        """When to start anew those workers that ended."""
        due = {}
        now = time.monotonic()
        for place, (process, started) in list(self._processes.items()):
            if process.exitcode is None:
                continue
            del self._processes[place]
            worker_ended(process.pid or 0)
            if self._stopping:
                continue
            rest = _FIRST_REST if now - started > _LASTED else min(2 * self._rest[place], _LONGEST_REST)
            self._rest[place] = rest
            due[place] = now + rest
            log.error("worker ended", worker=process.pid, exit_code=process.exitcode, again_in_seconds=rest)
        return due

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._stopping = True
        for process, _ in self._processes.values():
            if process.pid is not None and process.exitcode is None:
                with suppress(ProcessLookupError):  # it ended just now
                    os.kill(process.pid, number)


def _work(settings: Settings, family: int, port: int) -> None:
    """A worker's whole life."""
    parent = parent_process()
    if parent is not None:
        # A worker whose parent was killed would hold the port for ever.
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    configure_logs(settings.log_format)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((settings.host, port))
    Server(settings).run([listener])


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


class _reserved:  # noqa: N801 - a context manager, read as a function
    """Hold a port against everybody but the workers; gives its family and number."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    def __enter__(self) -> tuple[int, int]:
        host, port = self._address
        try:
            family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            # First alone: who shares the port from the start would never learn that it is taken.
            with socket.socket(family, kind) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
            self._held = socket.socket(family, kind)
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._held.bind(address)
        except OSError as error:
            raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        return family, self._held.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self._held.close()

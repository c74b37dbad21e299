"""`Server`: uvicorn, which on SIGTERM first says that it is not ready, and only later stops listening."""

from __future__ import annotations

import math
import signal
import sys
from time import monotonic
from types import FrameType

import uvicorn

from service import tls
from service.app import create_app
from service.protocol import Limits, Protocol
from service.rotation import Rotation
from service.settings import Settings

_TURN = 0.0005
"""Seconds for which a thread has the interpreter to itself while another waits for it."""
_BETWEEN_LOOKS = 20
"""Ticks, of a tenth of a second, between two looks at files of keys and certificates."""
_FINISH = 5
"""Seconds beyond a deadline that requests under way have after the drain. A client that never sends the rest
of its request would else hold up the end, and the rest of the exposure log, until the process is killed."""


class Server(uvicorn.Server):
    """Serves one application."""

    def __init__(self, settings: Settings) -> None:
        # A thread that loads a pack would else keep the interpreter from requests for 5 ms at a time.
        sys.setswitchinterval(_TURN)
        self._app = create_app(settings)
        self._app.state.limits = Limits(settings.max_connections, settings.request_seconds)
        context = tls.context(settings)
        self._rotation = Rotation(settings, self._app.state.keys, context)
        self._drain_seconds = settings.drain_seconds
        self._stop_at: float | None = None
        super().__init__(
            uvicorn.Config(
                self._app,
                host=settings.host,
                port=settings.port,
                log_config=None,  # what `configure_logs` set up
                access_log=False,  # it would be a second line for every answer
                proxy_headers=False,  # nothing here reads the caller's address
                http=Protocol,
                ws="none",  # nothing here speaks it
                server_header=False,
                ssl_context_factory=None if context is None else lambda *_: context,
                timeout_graceful_shutdown=math.ceil(settings.deadline_ms / 1e3) + _FINISH,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM, drain; on any other signal, stop now.

        A second SIGTERM is nothing new: who signals a group of processes signals a worker twice.
        """
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)
        elif not self._app.state.draining:
            self._app.state.draining = True
            self._stop_at = monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to stop."""
        if counter % _BETWEEN_LOOKS == 0:
            self._rotation.look()
        if self._stop_at is not None and monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

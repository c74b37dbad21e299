"""`EveryRequest`: what happens around each request that is not scored: its id, and its log line."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from itertools import count
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry import log_answer

_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PROCESS = uuid.uuid4().hex[:16]
"""Begins the ids that this process makes; a number follows, since drawing each anew takes longer."""
_COUNTER = count()
_QUIET = {"/healthz", "/readyz", "/metrics"}
"""Asked every few seconds by machines: no log line."""


class EveryRequest:
    """Middleware. Sets `request.state`: `request_id`, `started`, and `record`, which a route adds to.

    What stands in `record` is logged with the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        heads = dict(scope["headers"])
        name = request_id(heads)
        record: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=name, started=started, record=record)
        state = scope["app"].state
        status = 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", name.encode())]
                if state.draining:
                    # Or a client that keeps its connection would find it cut.
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = perf_counter() - started
            if scope["path"] not in _QUIET:
                method, path = scope["method"], scope["path"]
                if state.traces is not None:
                    route = getattr(scope.get("route"), "path", None)
                    moments = started, None, started + seconds
                    state.traces.answered(method, route, heads, record, status=status, moments=moments)
                log_answer(seconds, request_id=name, method=method, path=path, status=status, **record)


def session_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The session that a caller names, if it is well-formed."""
    given = headers.get(b"x-session-id")
    return given.decode() if given is not None and _WELL_FORMED.fullmatch(given) else None


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's, if it is well-formed, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _WELL_FORMED.fullmatch(given):
        return given.decode()
    return f"{_PROCESS}{next(_COUNTER):016x}"

"""`Protocol`: uvicorn's HTTP/1.1, which answers requests that are scored where they are read.

An ASGI call, its task and its messages take as long as scoring dozens of candidates, and refusing a request
must cost a fraction of answering it, or a service that is asked for three times what it can do would spend
its time on refusals. So a request of a `Direct` route is refused when its head is there, or answered when its
body is, in one write. Whatever has to wait for something, and every other route, goes the ordinary way.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.admission import Admission
from service.api.bodies import too_large
from service.api.direct import Answer, Direct

_PLAIN = "1.1"
MOST_TARGET = 4096
"""Bytes of a path with its query."""
MOST_HEADERS = 100
MOST_HEAD = 32_768
"""Bytes of a request's target and headers. One header that does not end may have as much again as is read at
once, before that is known."""
MOST_AHEAD = 100
"""Requests that a connection may send before the first of them is answered."""
_ASKING = {b"upgrade", b"http2-settings"}
"""Headers of a request that asks for another protocol."""
_LOOKS = 2
"""How often in the time for a request a connection is looked at."""


@dataclass(frozen=True)
class Limits:
    """What connections may take."""

    connections: int
    """At most so many."""
    seconds: float
    """For a whole request to come, for an answer to be taken, and for a new connection to ask."""


class Refused(Exception):
    """A request is not read on."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _route: Direct | None = None
    """Of the request that is being read, if it is answered here."""
    _path: str
    _heads: dict[bytes, bytes]
    _arrived: float
    _chunks: list[bytes]
    _size: int
    _answer: Answer | None
    """It was answered before all of it was read; the rest is dropped."""
    _closing = False
    """The connection ends with the answer under way."""
    _head: int | None = None
    """Bytes of the head that is being read; None between heads."""
    _began = 0
    """Requests that began to come; by that it is known whether one is new."""
    _status = 400
    """Of the answer to what is not read on."""
    _seen: tuple[int, bool] = (0, False)
    """Requests that had begun at the last look, and whether an answer waited to be taken."""
    _unchanged = 0
    """Looks for which that stayed."""
    _look: asyncio.TimerHandle | None = None
    _data = b""
    """What is being read."""
    _asks = False
    """The request asks for another protocol."""
    _stopped_at: int | None = None
    """Where in `_data` the parser stopped for that."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there is room for one."""
        super().connection_made(transport)
        self._limits: Limits = self.config.loaded_app.state.limits
        self._again()
        if len(self.connections) > self._limits.connections:
            self._end(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        began, self._data = self._began, data
        while self._data:
            super().data_received(self._data)
            self._data = self._left()
        # A header that does not end is no header yet, and only here can it be seen to grow.
        if self._head is not None and began == self._began:
            self._head += len(data)
            if self._head > MOST_HEAD:
                self._status = 431
                self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """End a connection that is not read on. What was asked before is answered, and nothing after it."""
        del msg
        status, self._status = self._status, 400
        under_way = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing():
            return
        if under_way and (self._head is not None or not self.cycle.more_body):
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif (self._route is not None and self._answer is not None) or (
            under_way and (self.pipeline or self.cycle.response_started)
        ):
            self.transport.close()  # another answer here would be taken for one to another request
        else:
            self._end(status)

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        super().on_url(url)
        if len(self.url) > MOST_TARGET:
            self._status = 414
            raise Refused
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > MOST_HEADERS:
            self._status = 431
            raise Refused

    def on_message_begin(self) -> None:
        """Note when the request may have arrived."""
        if self.transport.is_closing():
            raise Refused  # it comes behind one that was the last
        super().on_message_begin()
        self._head = 0
        self._began += 1
        admission: Admission = self.config.loaded_app.state.admission
        self._arrived = self.scope["state"]["arrived"] = admission.arrival()

    def on_headers_complete(self) -> None:
        """Take the request, if it is one for here."""
        self._head = None
        if len(self.pipeline) >= MOST_AHEAD:
            self._status = 429
            self._head = 0  # not read on, as if its head had not ended
            raise Refused
        version, method = self.parser.get_http_version(), self.parser.get_method()
        if version not in {"1.0", _PLAIN} or method == b"CONNECT":
            raise Refused
        if self.parser.should_upgrade():
            self._asks = True
            return
        self._route = route = self._direct()
        if route is None:
            super().on_headers_complete()
            return
        self._heads = dict(self.headers)
        self._chunks, self._size, self._answer = [], 0, None
        if not route.in_time(self._arrived, self._heads):
            self._write(route.refuse(self._path, self._heads))

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        if self._route is None:
            super().on_body(body)
        elif self._answer is None:
            self._size += len(body)
            self._chunks.append(body)
            if self._size > self._route.most:
                self._closing = True  # or all of it would have to be read
                error = too_large(self._route.most)
                self._write(self._route.error(error, self._path, self._heads, self._arrived))

    def on_message_complete(self) -> None:
        """Answer, if it has not happened yet."""
        if self._asks:
            return
        route = self._route
        if route is None:
            super().on_message_complete()
            return
        if self._answer is None:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            answer = None if route.waits else route.now(self._path, self._heads, body, self._arrived)
            if answer is None:
                # It has to wait: from here on it is a request like any other.
                self._route = None
                super().on_headers_complete()
                super().on_body(body)
                super().on_message_complete()
                return
            self._write(answer)
        self._route = None

    def shutdown(self) -> None:
        """Close once the request that is being read is answered."""
        if self._route is not None and self._answer is None:
            self._closing = True
        else:
            super().shutdown()

    def on_response_complete(self) -> None:
        """Read on, unless answers wait to be taken."""
        super().on_response_complete()
        if self.flow.write_paused:
            self.flow.pause_reading()

    def pause_writing(self) -> None:
        """Read no more from who does not take answers: they would pile up here."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        super().resume_writing()
        self.flow.resume_reading()

    def _unsupported_upgrade_warning(self) -> None:
        """The parser stopped behind a head that asks for another protocol, as if no body could follow."""
        stopped = sys.exc_info()[1]
        self._stopped_at = stopped.args[0] if isinstance(stopped, HttpParserUpgrade) else None

    def _left(self) -> bytes:
        """What has to be read again: a request that asks for another protocol, as if it did not.

        None is spoken here, and who asks for one, as Java's client does for HTTP/2, is to be answered all the
        same.
        """
        at, self._stopped_at = self._stopped_at, None
        if at is None or not self._asks:
            return b""
        self._asks = False
        lines = [
            self.parser.get_method() + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()
        ]
        for name, value in self.headers:
            if name == b"connection":
                kept = [each for each in value.split(b",") if each.strip().lower() not in _ASKING]
                value = b",".join(kept)  # noqa: PLW2901
            if name not in _ASKING and (value or name != b"connection"):
                lines.append(name + b": " + value)
        # A new one: the old may be done, where the request says that it is the connection's last.
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the one before it
        return b"\r\n".join([*lines, b"", self._data[at:]])

    def _count(self, size: int) -> None:
        self._head = (self._head or 0) + size
        if self._head > MOST_HEAD:
            self._status = 431
            raise Refused

    def _again(self) -> None:
        self._look = self.loop.call_later(self._limits.seconds / _LOOKS, self._watch)

    def _watch(self) -> None:
        """End the connection where nothing has moved for as long as a request may take.

        One look every so often is all that this costs, however many requests come.
        """
        seen = self._began, self.flow.write_paused
        self._unchanged = self._unchanged + 1 if seen == self._seen else 0
        self._seen = seen
        self._again()
        if self._unchanged < _LOOKS:
            return
        reading = self._head is not None or self._route is not None
        asked = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()  # who takes nothing will not take what waits, either
        elif asked and not self.cycle.more_body:
            return  # it is we who let it wait
        elif reading or asked:
            self._status = 408
            self.send_400_response("")
        else:
            self.transport.close()

    def _end(self, status: int) -> None:
        """Answer by a status alone, and close."""
        lines = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.write(b"".join(lines))
        self.transport.close()

    def _direct(self) -> Direct | None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle or self.parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        if self.parser.get_http_version() != _PLAIN:
            return None
        routes: Iterable[Direct] = self.config.loaded_app.state.direct
        # A path with an escape in it, or a query, is rare, and for those who take such apart.
        self._path = self.url.decode("latin-1")
        return next((route for route in routes if route.path.fullmatch(self._path)), None)

    def _write(self, answer: Answer) -> None:
        self._answer = answer
        closing = (
            self._closing or not self.parser.should_keep_alive() or self.config.loaded_app.state.draining
        )
        lines = [STATUS_LINE[answer.status]]
        for name, value in (*self.server_state.default_headers, *answer.headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"content-length: ", str(len(answer.body)).encode(), b"\r\n")
        lines += (b"connection: close\r\n\r\n" if closing else b"\r\n", answer.body)
        self.transport.write(b"".join(lines))
        self.on_response_complete()
        if closing:
            self.transport.close()

"""`Protocol`: uvicorn's HTTP/1.1, which answers requests that are scored where they are read.

An ASGI call, its task and its messages take as long as scoring dozens of candidates, and refusing a request
must cost a fraction of answering it, or a service that is asked for three times what it can do would spend
its time on refusals. So a request of a `Direct` route is refused when its head is there, or answered when its
body is, in one write. Whatever has to wait for something, and every other route, goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.admission import Admission
from service.api.bodies import too_large
from service.api.direct import Answer, Direct

_PLAIN = "1.1"


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

    def on_message_begin(self) -> None:
        """Note when the request may have arrived."""
        super().on_message_begin()
        admission: Admission = self.config.loaded_app.state.admission
        self._arrived = self.scope["state"]["arrived"] = admission.arrival()

    def on_headers_complete(self) -> None:
        """Take the request, if it is one for here."""
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

    def _direct(self) -> Direct | None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle or self.parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        if self.parser.get_http_version() != _PLAIN or self.parser.should_upgrade():
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

"""`Direct`: a route that scores, from bytes to bytes.

Ranking is where the time goes. Its routes are answered below FastAPI, and where nothing has to be waited for,
below ASGI: `service.protocol` hands a request over whole, and writes the answer. What a framework and a
middleware would do (the request's id, keys, the log line, metrics, problems) is done here, once.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from service import problems
from service.admission import Admission
from service.api import bodies
from service.api.requests import request_id
from service.contract.errors import Overloaded
from service.contract.field import Column
from service.features import Ids
from service.runtime import Runtime
from service.scoring import Ranking
from service.security import KeyRing
from service.telemetry import log_answer

Headers = Mapping[bytes, bytes]
"""By name in lower case; of several with one name, the last."""

log = structlog.get_logger()


@dataclass(slots=True)
class Asked:
    """A request, read."""

    domain: str
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    ids: Ids
    items: Mapping[str, Column]
    top_k: int | None
    options: Any = None
    """What the answer's form depends on."""


@dataclass(slots=True)
class Answer:
    """A response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Direct(ABC):
    """One path of `POST` requests that are scored."""

    path: ClassVar[re.Pattern[str]]
    """What it matches is this route's."""

    def __init__(self, app: FastAPI, runtime: Runtime, keys: KeyRing, admission: Admission) -> None:
        self._app, self._runtime, self._keys, self._admission = app, runtime, keys, admission
        self.most = runtime.settings.max_body_bytes
        """Bytes of a body that are taken."""
        self._deadline = runtime.settings.deadline_ms / 1e3
        self._scorer, self._router = runtime.scorer, runtime.router
        self._profiles = runtime.profiles

    @abstractmethod
    def decode(self, path: str, headers: Headers, body: bytes) -> Asked:
        """Read a request.

        Raises:
            RequestError: it cannot be scored.
            HTTPException: it is not what this route takes.
        """

    @abstractmethod
    def encode(self, asked: Asked, ranking: Ranking, name: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The answer's own headers, and its body."""

    def failed(self, error: Exception, path: str, name: str) -> Answer:
        """The answer to a request that ended in an error."""
        found = problems.ending(error, path, name)
        headers = [(key.lower().encode(), value.encode()) for key, value in found.headers.items()]
        return Answer(found.status, headers, found.body)

    def domain(self, path: str) -> str:
        """Which domain's metrics a request counts for that was not read yet."""
        del path
        return ""

    def in_time(self, arrived: float, headers: Headers) -> bool:
        """Whether a request can still be answered in time."""
        try:
            return self._admission.in_time(arrived, self._allowed(headers))
        except HTTPException:
            return True  # what is wrong with it is said when it is read

    def now(self, path: str, headers: Headers, body: bytes, arrived: float) -> Answer | None:
        """Answer a request, or None where something would have to be waited for.

        Args:
            path: that `path` matches.
            headers: of the request.
            body: all of it.
            arrived: when it may have arrived.
        """
        began = perf_counter()
        name = request_id(headers)
        record: dict[str, Any] = {"domain": self.domain(path)}
        try:
            self._allowed(headers)
            asked = self._read(path, headers, body, record)
            pack = self._router.now(asked.domain)
            if pack is None:
                return None
            if self._profiles is not None:
                user = self._profiles.now(asked.user)
                if user is None:
                    return None
                asked.user = user
            ranking = self._scorer.rank(
                pack, asked.user, asked.context, asked.ids, asked.items, top_k=asked.top_k
            )
            answer = self._answered(asked, ranking, name, record, (arrived, began))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
            answer = self._failed(error, path, name, arrived)
        self._admission.answered(perf_counter() - began)
        self._finish(answer.status, path, name, record, arrived)
        return answer

    def error(self, error: Exception, path: str, headers: Headers, arrived: float) -> Answer:
        """The answer to a request that is wrong before it is read."""
        name = request_id(headers)
        answer = self._failed(error, path, name, arrived)
        self._finish(answer.status, path, name, {"domain": self.domain(path)}, arrived)
        return answer

    def refuse(self, path: str, headers: Headers) -> Answer:
        """The answer to a request that cannot be answered in time."""
        name = request_id(headers)
        answer = self.failed(Overloaded("more is asked than can be answered in time"), path, name)
        answer.headers += [(b"x-request-id", name.encode()), (b"server-timing", b"total;dur=0")]
        self._admission.refused()
        self._runtime.metrics.answered(self.domain(path), answer.status, 0.0)
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as ASGI has it: one that has to wait, or that came by another server."""
        began = perf_counter()
        path, headers = scope["path"], dict(scope["headers"])
        arrived = scope.get("state", {}).get("arrived", began)
        name = request_id(headers)
        record: dict[str, Any] = {"domain": self.domain(path)}
        self._admission.waiting += 1
        try:
            until = arrived + self._allowed(headers)
            body = await bodies.whole(Request(scope, receive), self.most)
            asked = self._read(path, headers, body, record)
            if self._profiles is not None:
                spare = until - perf_counter() - self._admission.seconds
                asked.user = await self._profiles.merged(asked.user, spare)
            pack = await self._router.route(asked.domain, until - perf_counter())
            began = perf_counter()
            ranking = self._scorer.rank(
                pack, asked.user, asked.context, asked.ids, asked.items, top_k=asked.top_k
            )
            answer = self._answered(asked, ranking, name, record, (arrived, began))
            # Not what an error took: it may have waited all its time, and kept the loop from nothing.
            self._admission.answered(perf_counter() - began)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
            answer = self._failed(error, path, name, arrived)
        finally:
            self._admission.waiting -= 1
        if self._app.state.draining:
            # Or a client that keeps its connection would find it cut.
            answer.headers.append((b"connection", b"close"))
        answer.headers.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})
        self._finish(answer.status, path, name, record, arrived)

    def _read(self, path: str, headers: Headers, body: bytes, record: dict[str, Any]) -> Asked:
        if not self._keys.rank_is_open:
            record["key"] = self._keys.identify(headers).name
        asked = self.decode(path, headers, body)
        record["domain"] = asked.domain
        return asked

    def _answered(
        self, asked: Asked, ranking: Ranking, name: str, record: dict[str, Any], moments: tuple[float, float]
    ) -> Answer:
        headers, body = self.encode(asked, ranking, name)
        record["pack"], record["candidates"] = ranking.pack, len(asked.ids)
        if ranking.items is not None:
            record["items"] = ranking.items
        self._runtime.observe(ranking, len(asked.ids))
        arrived, began = moments
        timing = (
            f"queue;dur={(began - arrived) * 1e3:.3f}, features;dur={ranking.features_seconds * 1e3:.3f}, "
            f"engine;dur={ranking.engine_seconds * 1e3:.3f}, total;dur={(perf_counter() - arrived) * 1e3:.3f}"
        )
        headers += [(b"x-request-id", name.encode()), (b"server-timing", timing.encode())]
        return Answer(200, headers, body)

    def _failed(self, error: Exception, path: str, name: str, arrived: float) -> Answer:
        answer = self.failed(error, path, name)
        if answer.status == 500:
            log.error("a request failed", request_id=name, exc_info=error)
        timing = f"total;dur={(perf_counter() - arrived) * 1e3:.3f}".encode()
        answer.headers += [(b"x-request-id", name.encode()), (b"server-timing", timing)]
        return answer

    def _finish(self, status: int, path: str, name: str, record: dict[str, Any], arrived: float) -> None:
        seconds = perf_counter() - arrived
        self._runtime.metrics.answered(record["domain"], status, seconds)
        log_answer(seconds, method="POST", path=path, status=status, request_id=name, **record)

    def _allowed(self, headers: Headers) -> float:
        """Seconds that the caller, or else the service, gives a request."""
        given = headers.get(b"x-deadline-ms")
        if given is None:
            return self._deadline
        try:
            allowed = float(given)
        except ValueError:
            allowed = math.nan
        if not 0 < allowed < math.inf:
            raise HTTPException(400, "X-Deadline-Ms must be a number of milliseconds above 0")
        return allowed / 1e3

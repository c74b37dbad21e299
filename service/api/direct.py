"""`Direct`: a route that scores, from bytes to bytes.

Ranking is where the time goes. Its routes are answered below FastAPI, and where nothing has to be waited for,
below ASGI: `service.protocol` hands a request over whole, and writes the answer. What a framework and a
middleware would do (the request's id, keys, the log line, metrics, problems) is done here, once.
"""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from service import problems
from service.admission import Admission
from service.api import bodies
from service.api.receipts import Receipts
from service.api.requests import request_id, session_id
from service.contract.errors import DeadlineExceeded, Overloaded
from service.contract.field import Column
from service.experiments.arms import NOTHING, Chosen, Model, units
from service.experiments.document import Arm
from service.features import Ids
from service.resident import Resident
from service.runtime import Runtime
from service.scoring import Ranking
from service.security import KeyRing
from service.telemetry import log_answer

if TYPE_CHECKING:
    from service.tracing import Tracer

Headers = Mapping[bytes, bytes]
"""By name in lower case; of several with one name, the last."""

_AT_FAULT = 500
"""From which status on it is the service that failed."""

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
    unit: str | None = None
    """What experiments assign in the place of the user's id."""
    chosen: Chosen = NOTHING
    """What experiments decide."""
    bundle: str = ""
    """That answers."""

    @property
    def member(self) -> tuple[str | None, str | None]:
        """The experiment and the arm that the answer names."""
        if not self.chosen.memberships:
            return None, None
        last = self.chosen.memberships[-1]
        return last.experiment, last.arm


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
    route: ClassVar[str]
    """The path's template, for the names of spans."""

    def __init__(self, app: FastAPI, runtime: Runtime, keys: KeyRing, admission: Admission) -> None:
        self._app, self._runtime, self._keys, self._admission = app, runtime, keys, admission
        self.most = runtime.settings.max_body_bytes
        """Bytes of a body that are taken."""
        self._deadline = runtime.settings.deadline_ms / 1e3
        runtime.metrics.permits.set(admission.permits)
        self._router = runtime.router
        self._own = Model(runtime.bundle.manifest.bundle, runtime.packs, runtime.router, runtime.scorer)
        self._arms = None if runtime.experiments is None else runtime.experiments.arms
        noted = runtime.exposures is not None or self._arms is not None
        self._receipts = Receipts(runtime) if noted else None
        self._profiles = runtime.profiles
        self._traces: Tracer | None = app.state.traces
        self.waits = runtime.scorer.waits
        """Whether every request has to wait, because the engine scores it together with others."""

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

        Not where `waits` says that the engine has to be.

        Args:
            path: that `path` matches.
            headers: of the request.
            body: all of it.
            arrived: when it may have arrived.
        """
        began = perf_counter()
        name = request_id(headers)
        record: dict[str, Any] = {"domain": self.domain(path)}
        asked = ranking = None
        try:
            self._allowed(headers)
            asked = self._read(path, headers, body, record)
            pack, model = self._now(asked, headers, name)
            if pack is None:
                return None
            if self._profiles is not None:
                user = self._profiles.now(asked.user)
                if user is None:
                    return None
                asked.user = user
            ranking = model.scorer.rank(
                pack, asked.user, asked.context, asked.ids, asked.items, top_k=asked.top_k
            )
            answer = self._answered(asked, ranking, name, record, (arrived, began))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
            answer = self._failed(error, path, name, arrived, asked)
        self._admission.answered(perf_counter() - began)
        self._finish(
            answer.status, path, name, record, headers=headers, moments=(arrived, began), ranking=ranking
        )
        return answer

    def error(self, error: Exception, path: str, headers: Headers, arrived: float) -> Answer:
        """The answer to a request that is wrong before it is read."""
        name = request_id(headers)
        answer = self._failed(error, path, name, arrived)
        record = {"domain": self.domain(path)}
        self._finish(answer.status, path, name, record, headers=headers, moments=(arrived, arrived))
        return answer

    def refuse(self, path: str, headers: Headers) -> Answer:
        """The answer to a request that cannot be answered in time."""
        name = request_id(headers)
        answer = self.failed(Overloaded("more is asked than can be answered in time"), path, name)
        answer.headers += [(b"x-request-id", name.encode()), (b"server-timing", b"total;dur=0")]
        self._admission.refused()
        metrics = self._runtime.metrics
        (metrics.refused_permits if self._admission.full else metrics.refused_deadline).inc()
        metrics.answered(self.domain(path), answer.status, 0.0)
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as ASGI has it: one that has to wait, or that came by another server."""
        began = perf_counter()
        path, headers = scope["path"], dict(scope["headers"])
        arrived = scope.get("state", {}).get("arrived", began)
        name = request_id(headers)
        record: dict[str, Any] = {"domain": self.domain(path)}
        asked = ranking = None
        self._admission.waiting += 1
        self._runtime.metrics.waiting.inc()
        try:
            until = arrived + self._allowed(headers)
            body = await bodies.whole(Request(scope, receive), self.most)
            asked = self._read(path, headers, body, record)
            if self._profiles is not None:
                spare = until - perf_counter() - self._admission.seconds
                asked.user = await self._profiles.merged(asked.user, spare)
            pack, model = await self._route(asked, headers, name, until - perf_counter())
            began = perf_counter()
            if self.waits:
                ranking = await model.scorer.ranked(
                    pack,
                    asked.user,
                    asked.context,
                    asked.ids,
                    asked.items,
                    top_k=asked.top_k,
                    seconds=until - began,
                )
                waited = ranking.engine_seconds
            else:
                ranking = model.scorer.rank(
                    pack, asked.user, asked.context, asked.ids, asked.items, top_k=asked.top_k
                )
                waited = 0.0
            answer = self._answered(asked, ranking, name, record, (arrived, began))
            # Not what an error took: it may have waited all its time, and kept the loop from nothing.
            self._admission.answered(perf_counter() - began - waited)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
            answer = self._failed(error, path, name, arrived, asked)
        finally:
            self._admission.waiting -= 1
            self._runtime.metrics.waiting.dec()
        if self._app.state.draining:
            # Or a client that keeps its connection would find it cut.
            answer.headers.append((b"connection", b"close"))
        answer.headers.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})
        self._finish(
            answer.status, path, name, record, headers=headers, moments=(arrived, began), ranking=ranking
        )

    def _read(self, path: str, headers: Headers, body: bytes, record: dict[str, Any]) -> Asked:
        if not self._keys.rank_is_open:
            record["key"] = self._keys.identify(headers).name
        asked = self.decode(path, headers, body)
        record["domain"] = asked.domain
        return asked

    def _now(self, asked: Asked, headers: Headers, name: str) -> tuple[Resident | None, Model]:
        """The pack that answers at once, or None, and the bundle that it is of."""
        change = self._change(asked, headers, name)
        if change is None or self._arms is None:
            return self._router.now(asked.domain), self._own
        found = self._arms.now(change, asked.domain)
        if found is None:
            return None, self._own
        asked.bundle = found.model.bundle
        return found

    async def _route(
        self, asked: Asked, headers: Headers, name: str, seconds: float
    ) -> tuple[Resident, Model]:
        """The pack that answers, and the bundle that it is of."""
        change = self._change(asked, headers, name)
        if change is None or self._arms is None:
            return await self._router.route(asked.domain, seconds), self._own
        found = await self._arms.route(change, asked.domain, seconds)
        asked.bundle = found.model.bundle
        return found

    def _change(self, asked: Asked, headers: Headers, name: str) -> Arm | None:
        """What experiments change about a request."""
        asked.bundle = self._own.bundle
        if self._arms is None:
            return None
        ids = units(asked.user, asked.unit, session_id(headers), name)
        fields = {"user": asked.user, "context": asked.context}
        forced = headers.get(b"x-force-arm")
        asked.chosen = self._arms.choose(asked.domain, ids, fields, forced, time.time())
        return asked.chosen.change

    def _answered(
        self, asked: Asked, ranking: Ranking, name: str, record: dict[str, Any], moments: tuple[float, float]
    ) -> Answer:
        headers, body = self.encode(asked, ranking, name)
        record["pack"], record["candidates"] = ranking.pack, len(asked.ids)
        if ranking.items is not None:
            record["items"] = ranking.items
        if asked.chosen.memberships:
            record["experiment"], record["arm"] = asked.member
        arrived, began = moments
        self._runtime.observe(asked.domain, ranking, len(asked.ids), began - arrived)
        timing = (
            f"queue;dur={(began - arrived) * 1e3:.3f}, features;dur={ranking.features_seconds * 1e3:.3f}, "
            f"engine;dur={ranking.engine_seconds * 1e3:.3f}, total;dur={(perf_counter() - arrived) * 1e3:.3f}"
        )
        headers += [(b"x-request-id", name.encode()), (b"server-timing", timing.encode())]
        if self._receipts is not None:
            self._receipts.answered(asked, ranking, name, perf_counter() - arrived)
        return Answer(200, headers, body)

    def _failed(
        self, error: Exception, path: str, name: str, arrived: float, asked: Asked | None = None
    ) -> Answer:
        answer = self.failed(error, path, name)
        if asked is not None and self._receipts is not None and answer.status >= _AT_FAULT:
            self._receipts.failed(asked, answer.status, name, perf_counter() - arrived)
        if isinstance(error, DeadlineExceeded):
            self._runtime.metrics.refused_late.inc()
        if answer.status == 500:
            log.error("a request failed", request_id=name, exc_info=error)
        timing = f"total;dur={(perf_counter() - arrived) * 1e3:.3f}".encode()
        answer.headers += [(b"x-request-id", name.encode()), (b"server-timing", timing)]
        return answer

    def _finish(
        self,
        status: int,
        path: str,
        name: str,
        record: dict[str, Any],
        *,
        headers: Headers,
        moments: tuple[float, float],
        ranking: Ranking | None = None,
    ) -> None:
        arrived, began = moments
        seconds = perf_counter() - arrived
        if self._traces is not None:
            spanned = arrived, began, arrived + seconds
            self._traces.answered(
                "POST", self.route, headers, record, status=status, moments=spanned, ranking=ranking
            )
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

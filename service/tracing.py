"""`Tracer`: a span for each traced request, made once its answer is there.

The moments are measured anyway, so nothing is done while a request is scored, and nothing at all for one that
is not traced. Spans go to a collector by OTLP over HTTP, from a thread of their own; what does not fit the
queue is dropped. No span carries the value of a feature.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from random import random
from threading import Thread
from time import perf_counter, time_ns
from typing import Any, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.scoring import Ranking
from service.telemetry import software

_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Routes that machines ask every few seconds."""
_NOTED = ("domain", "pack", "candidates", "experiment", "arm")
"""Of an answer's log line, what its span tells, too."""
_LONGEST = 256
"""Characters of an attribute: a path may name a domain of any length."""
_QUEUE, _BATCH = 8192, 1024
"""Spans that may wait to be sent, and that are sent at once."""
_EVERY = 1.0
"""Seconds between two sendings."""
_TIMEOUT = 5.0
"""Seconds that a sending may take, and that the last ones may take together."""
_AT_FAULT = 500
"""From which status on it is the service that failed."""
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Tracer:
    """Makes spans and sends them."""

    def __init__(self, exporter: SpanExporter, share: float) -> None:
        """Trace requests.

        Args:
            exporter: takes the spans.
            share: of the requests whose callers do not say whether they are traced.
        """
        self._exporter, self._share = exporter, share
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=_QUEUE,
            max_export_batch_size=_BATCH,
            schedule_delay_millis=_EVERY * 1e3,
        )
        self._extract = TraceContextTextMapPropagator().extract
        self._ids = RandomIdGenerator()
        self._resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "mdctr"),
                "service.version": software(),
                "service.instance.id": str(uuid.uuid4()),  # a worker
            }
        )
        self._scope = InstrumentationScope("mdctr")
        self._ahead = 0
        """Nanoseconds of the clock at the zero of `time.perf_counter`; clocks are set now and then."""

    @classmethod
    def to(cls, endpoint: str, share: float) -> Self:
        """A tracer whose spans go to a collector.

        Args:
            endpoint: URL that takes OTLP over HTTP.
            share: as above.
        """
        return cls(OTLPSpanExporter(endpoint, timeout=_TIMEOUT), share)

    def answered(
        self,
        method: str,
        route: str | None,
        headers: Mapping[bytes, bytes],
        record: dict[str, Any],
        *,
        status: int,
        moments: tuple[float, float | None, float],
        ranking: Ranking | None = None,
    ) -> None:
        """Make the spans of a request, if it is traced; its trace's id joins the record.

        Args:
            method: of HTTP.
            route: the path's template; None for a path that there is not.
            headers: of the request, names in lower case.
            record: of the answer's log line.
            status: of the answer.
            moments: when the request arrived, when its turn came if it had to wait, and when the answer was
                there, by `time.perf_counter`.
            ranking: of a request that was scored.
        """
        if route in _UNTRACED:
            return
        caller = self._caller(headers)
        if caller is None:
            if random() >= self._share:  # noqa: S311 - no secret
                return
            trace, state = self._ids.generate_trace_id(), None
        else:
            trace, state = caller.trace_id, caller.trace_state
        record["trace_id"] = f"{trace:032x}"
        if caller is not None and not caller.trace_flags.sampled:
            return
        arrived, began, ended = moments
        self._ahead = time_ns() - round(perf_counter() * 1e9)
        own = self._context(trace, state)
        if ranking is not None and began is not None:
            encoded = ranking.started + ranking.features_seconds
            scored = encoded + ranking.engine_seconds
            self._send("queue", self._context(trace, state), own, arrived, began)
            self._send("features", self._context(trace, state), own, ranking.started, encoded)
            self._send("engine", self._context(trace, state), own, encoded, scored)
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.response.status_code": status,
        }
        if route is not None:
            attributes["http.route"] = route
        for key in _NOTED:
            if value := record.get(key):
                attributes[f"mdctr.{key}"] = value[:_LONGEST] if isinstance(value, str) else value
        name = method if route is None else f"{method} {route}"
        kind, outcome = SpanKind.SERVER, _ERROR if status >= _AT_FAULT else _UNSET
        self._send(name, own, caller, arrived, ended, attributes=attributes, kind=kind, status=outcome)

    def close(self) -> None:
        """Send what waits, for a while; then give up."""
        flush = Thread(target=self._processor.shutdown, name="flush spans", daemon=True)
        flush.start()
        flush.join(_TIMEOUT)
        if flush.is_alive():
            self._exporter.shutdown()  # it would go on trying

    def _caller(self, headers: Mapping[bytes, bytes]) -> SpanContext | None:
        """The span that a request says it is part of."""
        parent = headers.get(b"traceparent")
        if parent is None:
            return None
        carrier = {"traceparent": parent.decode("latin-1")}
        if (state := headers.get(b"tracestate")) is not None:
            carrier["tracestate"] = state.decode("latin-1")
        # A context of its own: there may be a current one, which is nobody's parent.
        found = get_current_span(self._extract(carrier, Context())).get_span_context()
        return found if found.is_valid else None

    def _context(self, trace: int, state: TraceState | None) -> SpanContext:
        return SpanContext(trace, self._ids.generate_span_id(), False, _SAMPLED, state)

    def _send(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start: float,
        end: float,
        *,
        attributes: Mapping[str, str | int] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status = _UNSET,
    ) -> None:
        # Not by the SDK's own tracer, whose spans are made to be open for a while and cost ten times as much.
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                kind=kind,
                status=status,
                start_time=self._ahead + round(start * 1e9),
                end_time=self._ahead + round(end * 1e9),
                instrumentation_scope=self._scope,
            )
        )

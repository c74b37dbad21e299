"""Metric definitions, and how logs are written.

A label is from a closed set: a domain that no pack has ever served is `other`. No log line and no metric
carries the value of a feature.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from structlog.typing import EventDict, Processor

from service import pack_info
from service.drift import Drift
from service.pack_info import PackInfo

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0)
_MOST_LABELS = 200
"""Domains that have a label of their own: with thousands, a scrape would be larger than what is served."""
SAMPLED = 4
"""Of so many rankings of a worker, one has everything measured: it takes some microseconds."""
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_CANDIDATES = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)


WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that tells prometheus-client where several workers keep what they count."""


class _Mode(TypedDict):
    """Which worker's value of a gauge is shown."""

    multiprocess_mode: Literal["livemax", "livemin", "livesum"]


_MAX: _Mode = {"multiprocess_mode": "livemax"}
_MIN: _Mode = {"multiprocess_mode": "livemin"}
_SUM: _Mode = {"multiprocess_mode": "livesum"}


class Metrics:
    """Every metric of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mdctr_requests", "Rank requests answered.", ["domain", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "mdctr_request_seconds",
            "From the request's arrival to its answer's first byte.",
            ["domain"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        stages = Histogram(
            "mdctr_stage_seconds",
            "Part of a request; the queue's of a sample.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = stages.labels("queue")
        self.features_seconds = stages.labels("features")
        self.engine_seconds = stages.labels("engine")
        refused = Counter(
            "mdctr_refused", "Rank requests that were not scored in time.", ["reason"], registry=self.registry
        )
        self.refused_deadline = refused.labels("deadline")
        """Refused at once, because there would be no time left."""
        self.refused_permits = refused.labels("permits")
        """Refused at once, because as many as may wait did."""
        self.refused_late = refused.labels("late")
        """Begun, and given up when their time was over."""
        self.waiting = Gauge("mdctr_waiting", "Requests that hold a permit.", registry=self.registry, **_SUM)
        self.permits = Gauge(
            "mdctr_permits", "Requests that may wait at once.", registry=self.registry, **_SUM
        )
        self.users_missed = Counter(
            "mdctr_users_missed",
            "Requests scored without what is kept of their user.",
            ["reason"],
            registry=self.registry,
        )
        self.user_values_refused = Counter(
            "mdctr_user_values_refused",
            "Values kept of users that do not fit their field.",
            ["field"],
            registry=self.registry,
        )
        self.events = Counter("mdctr_events", "Events taken.", ["kind"], registry=self.registry)
        self.arms = Counter(
            "mdctr_arms",
            "Requests in an arm of an experiment.",
            ["experiment", "arm"],
            registry=self.registry,
        )
        self.shadows = Counter(
            "mdctr_shadows", "Requests that were to be scored besides.", ["outcome"], registry=self.registry
        )
        self.shadow_difference = Histogram(
            "mdctr_shadow_difference",
            "Mean absolute difference of a shadow's probabilities from the answer's.",
            buckets=_DIFFERENCES,
            registry=self.registry,
        )
        self.experiments_refused = Counter(
            "mdctr_experiments_refused", "Documents of experiments that were refused.", registry=self.registry
        )
        self.experiments_since = Gauge(
            "mdctr_experiments_since_timestamp_seconds",
            "When the document of experiments was taken over; 0 without one.",
            registry=self.registry,
            **_MIN,
        )
        self.exposures_written = Counter(
            "mdctr_exposures_written", "Rows of the exposure log that are on disk.", registry=self.registry
        )
        self.exposures_dropped = Counter(
            "mdctr_exposures_dropped",
            "Rows of the exposure log that are lost, or were not sent.",
            ["reason"],
            registry=self.registry,
        )
        self.candidates = Histogram(
            "mdctr_candidates", "Candidates of a request.", buckets=_CANDIDATES, registry=self.registry
        )
        self.packs_loaded = Counter(
            "mdctr_packs_loaded", "Packs that became visible.", ["domain"], registry=self.registry
        )
        self.packs_evicted = Counter(
            "mdctr_packs_evicted", "Resident packs that had to make room.", registry=self.registry
        )
        self.packs_brought = Counter(
            "mdctr_packs_brought", "Packs that were loaded because a request asked.", registry=self.registry
        )
        self.resident_packs = Gauge(
            "mdctr_resident_packs", "Packs that answer at once.", registry=self.registry, **_MAX
        )
        self.resident_bytes = Gauge(
            "mdctr_resident_bytes",
            "Of the packs that answer at once; workers share them.",
            registry=self.registry,
            **_MAX,
        )
        self.resident_bytes_limit = Gauge(
            "mdctr_resident_bytes_limit", "What they may have.", registry=self.registry, **_MAX
        )
        self.from_shelf = Gauge(
            "mdctr_packs_from_shelf",
            "1 while packs of last time serve, because the store has not answered since the start.",
            registry=self.registry,
            **_MAX,
        )
        self.packs_refused = Counter(
            "mdctr_packs_refused", "Packs that failed a check.", ["domain"], registry=self.registry
        )
        self.pack_since = Gauge(
            "mdctr_pack_since_timestamp_seconds",
            "When the serving pack became visible.",
            ["domain"],
            registry=self.registry,
            **_MIN,
        )
        self.items_loaded = Counter(
            "mdctr_items_loaded", "Item tables that became visible.", registry=self.registry
        )
        self.items_refused = Counter(
            "mdctr_items_refused", "Item tables that failed a check.", registry=self.registry
        )
        self.items_since = Gauge(
            "mdctr_items_since_timestamp_seconds",
            "When the serving item table became visible; 0 for the bundle's own since the start.",
            registry=self.registry,
            **_MIN,
        )
        self.store_contact = Gauge(
            "mdctr_store_contact_timestamp_seconds",
            "When the pack store last told what is live.",
            registry=self.registry,
            **_MIN,
        )
        self.ready = Gauge("mdctr_ready", "1 if /readyz says yes.", registry=self.registry, **_MIN)
        folder = os.environ.get(WORKERS_FOLDER)
        self._packs = PackInfo(Path(folder) if folder else None)
        self.registry.register(self._packs)
        self.drift = Drift(self.registry, self.known)
        self._turn = 0
        self._labels: set[str] = set()
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def label(self, domain: str) -> str:
        """A domain's label: its name, for the first so many of which a pack serves."""
        if domain in self._labels:
            return domain
        if len(self._labels) < _MOST_LABELS:
            self._labels.add(domain)
            return domain
        return "other"

    def answered(self, domain: str, status: int, seconds: float) -> None:
        """Count an answer, and how long it took."""
        pair = self._answers.get((domain, status))
        if pair is None:
            label = self.known(domain)
            pair = self.requests.labels(label, status), self.request_seconds.labels(label)
            if label == domain:  # of those there are only so many
                self._answers[domain, status] = pair
        counter, histogram = pair
        counter.inc()
        histogram.observe(seconds)

    def known(self, domain: str) -> str:
        """The label of a domain that somebody asked for: its own if it has one."""
        return domain if domain in self._labels else "other"

    def sample(self) -> bool:
        """Whether everything is to be measured of the ranking at hand."""
        self._turn = (self._turn or SAMPLED) - 1
        return self._turn == SAMPLED - 1

    def serve(self, bundle: str, packs: Mapping[str, str]) -> None:
        """Say which packs of a bundle serve, by domain; those of domains with a label are shown."""
        named = {domain: pack for domain, pack in packs.items() if self.label(domain) == domain}
        self._packs.serves(bundle, named)

    def text(self) -> bytes:
        """What is measured, for Prometheus: of this process, or of all workers together."""
        self.drift.count()
        if WORKERS_FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        together.register(self._packs)
        return generate_latest(together)


def worker_ended(pid: int) -> None:
    """Forget the gauges of a worker that ended; what it counted stays."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
    pack_info.forget(Path(os.environ[WORKERS_FOLDER]), pid)


def software() -> str:
    """The version of this package."""
    try:
        return version("mdctr")
    except PackageNotFoundError:
        return "not installed"  # run from a source tree


class AnswerLog:
    """The one line that each answer is logged with.

    As JSON it is written at once: structlog's processors take twice as long, and every request waits for it.
    """

    def __init__(self) -> None:
        self._log = structlog.get_logger()
        self.as_json = False

    def __call__(self, seconds: float, **record: Any) -> None:  # noqa: ANN401 - what a log line holds
        """Log an answer that took so long."""
        record["ms"] = round(seconds * 1e3, 3)
        if not self.as_json:
            self._log.info("answered", **record)
            return
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = msgspec.json.encode({**record, "event": "answered", "level": "info", "timestamp": now})
        sys.stderr.write(line.decode() + "\n")


log_answer = AnswerLog()


def _json(logger: object, method: str, event: EventDict) -> str:
    """A line of JSON; its encoder takes a fraction of the standard library's time, once for every answer."""
    del logger, method
    return msgspec.json.encode(event, enc_hook=repr).decode()


def configure_logs(style: Literal["auto", "json", "console"]) -> None:
    """Write logs to stderr: structlog's own, and those of libraries through the same renderer."""
    if style == "auto":
        style = "console" if sys.stderr.isatty() else "json"
    log_answer.as_json = style == "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: list[Processor] = (
        # Without the values of variables: they are keys, and features of people.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if style == "console"
        else [structlog.processors.format_exc_info, _json]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)

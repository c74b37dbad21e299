"""Spans: which requests have some, what they tell, and that they reach a collector."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from loadtest.server import service as running
from service import tracing
from service.contract.errors import SettingsError
from service.settings import Settings
from tests.service.conftest import Service
from tests.service.waiting import eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
RANK = "POST /v1/domains/{domain}/rank"


class Traced:
    """A service whose spans stay here."""

    def __init__(self, service: Service, exporter: InMemorySpanExporter, tracer: tracing.Tracer) -> None:
        self.service, self._exporter, self._tracer = service, exporter, tracer

    def spans(self):
        self._tracer._processor.force_flush()
        return self._exporter.get_finished_spans()

    def root(self):
        [root] = [span for span in self.spans() if span.kind is SpanKind.SERVER]
        return root


@pytest.fixture
def traced(start: Callable[..., Service], monkeypatch) -> Callable[..., Traced]:
    def begin(share: float, **settings) -> Traced:
        exporter = InMemorySpanExporter()
        tracer = tracing.Tracer(exporter, share)
        monkeypatch.setattr(tracing.Tracer, "to", lambda endpoint, share: tracer)
        return Traced(start(traces="http://nowhere/v1/traces", **settings), exporter, tracer)

    return begin


def hexed(context) -> tuple[str, str]:
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


class TestSpans:
    def test_a_request_has_one_with_its_stages(self, traced) -> None:
        desk = traced(1.0)
        answer = desk.service.rank(ids=[10, 11]).json()
        spans = {span.name: span for span in desk.spans()}
        assert set(spans) == {RANK, "queue", "features", "engine"}
        root = spans[RANK]
        assert root.parent is None
        assert root.attributes == {
            "http.request.method": "POST",
            "http.route": "/v1/domains/{domain}/rank",
            "http.response.status_code": 200,
            "mdctr.domain": "books",
            "mdctr.pack": answer["pack"],
            "mdctr.candidates": 2,
        }
        assert root.status.status_code is StatusCode.UNSET
        stages = [spans[name] for name in ("queue", "features", "engine")]
        assert {span.parent.span_id for span in stages} == {root.context.span_id}
        assert {span.context.trace_id for span in spans.values()} == {root.context.trace_id}
        assert len({span.context.span_id for span in spans.values()}) == 4
        # One after another, and all of them within the request.
        moments = [moment for span in stages for moment in (span.start_time, span.end_time)]
        assert [root.start_time, *moments, root.end_time] == sorted(
            [root.start_time, *moments, root.end_time]
        )
        assert stages[1].end_time == stages[2].start_time

    def test_they_are_as_long_as_server_timing_says(self, traced) -> None:
        desk = traced(1.0)
        timing = desk.service.rank().headers["server-timing"]
        told = {
            name: float(dur)
            for name, _, dur in (part.strip().partition(";dur=") for part in timing.split(","))
        }
        spans = {span.name: (span.end_time - span.start_time) / 1e6 for span in desk.spans()}
        for stage in ("queue", "features", "engine"):
            assert spans[stage] == pytest.approx(told[stage], abs=0.001)
        assert spans[RANK] >= told["total"]

    def test_they_tell_no_value_of_a_feature(self, traced) -> None:
        desk = traced(1.0)
        desk.service.rank(user={"id": 987654321, "genres": ["secret-genre"]}, context={"hour": 7})
        text = "".join(span.to_json() for span in desk.spans())
        assert "987654321" not in text
        assert "secret-genre" not in text

    def test_a_refused_request_has_no_stages_and_is_no_fault(self, traced) -> None:
        desk = traced(1.0)
        desk.service.rank("nowhere")
        [span] = desk.spans()
        assert (span.name, span.attributes["http.response.status_code"]) == (RANK, 404)
        assert span.attributes["mdctr.domain"] == "nowhere"
        assert span.status.status_code is StatusCode.UNSET

    def test_a_fault_of_ours_is_an_error(self, traced, monkeypatch) -> None:
        desk = traced(1.0)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("service.scoring.Scorer.rank", broken)
        assert desk.service.rank().status_code == 500
        assert desk.root().status.status_code is StatusCode.ERROR

    def test_a_path_of_any_length_makes_no_large_span(self, traced) -> None:
        desk = traced(1.0)
        desk.service.rank("x" * 10_000)
        assert desk.root().attributes["mdctr.domain"] == "x" * 256

    def test_other_routes_have_one_and_what_machines_ask_has_none(self, traced) -> None:
        desk = traced(1.0)
        for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
            desk.service.client.get(path)
        assert not desk.spans()
        desk.service.client.get("/v1/domains")
        desk.service.client.get("/nothing/here")
        assert [span.name for span in desk.spans()] == ["GET /v1/domains", "GET"]

    def test_the_open_inference_protocol_has_them_too(self, traced) -> None:
        desk = traced(1.0)
        desk.service.client.post("/v2/models/tiny/infer", json={})
        assert desk.root().name == "POST /v2/models/{model}/infer"


class TestSampling:
    def test_none_without_a_caller_at_a_share_of_0(self, traced) -> None:
        desk = traced(0.0)
        desk.service.rank()
        assert not desk.spans()

    def test_a_share_of_the_requests(self, traced, monkeypatch) -> None:
        desk = traced(0.25)
        drawn = iter([0.1, 0.25, 0.3, 0.24])
        monkeypatch.setattr(tracing, "random", lambda: next(drawn))
        for _ in range(4):
            desk.service.rank()
        assert len({span.context.trace_id for span in desk.spans()}) == 2

    def test_a_sampled_caller_is_the_parent_whatever_the_share(self, traced) -> None:
        desk = traced(0.0)
        desk.service.rank(headers={"traceparent": SAMPLED, "tracestate": "vendor=abc"})
        root = desk.root()
        assert hexed(root.parent) == (TRACE, SPAN)
        assert hexed(root.context)[0] == TRACE
        assert root.context.trace_state.get("vendor") == "abc"
        assert {hexed(span.context)[0] for span in desk.spans()} == {TRACE}

    def test_an_unsampled_caller_is_respected(self, traced) -> None:
        desk = traced(1.0)
        desk.service.rank(headers={"traceparent": UNSAMPLED})
        assert not desk.spans()

    @pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"])
    def test_a_malformed_one_is_as_none(self, traced, header) -> None:
        desk = traced(1.0)
        assert desk.service.rank(headers={"traceparent": header}).status_code == 200
        assert desk.root().parent is None


class TestLogLine:
    def line(self, capsys):
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"answered"' in line]
        return lines[-1]

    @pytest.fixture
    def desk(self, traced, monkeypatch):
        monkeypatch.setattr("service.telemetry.log_answer.as_json", True)
        return traced(0.0)

    @pytest.mark.parametrize("header", [SAMPLED, UNSAMPLED])
    def test_names_the_callers_trace(self, desk, capsys, header) -> None:
        desk.service.rank(headers={"traceparent": header})
        assert self.line(capsys)["trace_id"] == TRACE

    def test_names_none_that_nobody_keeps(self, desk, capsys) -> None:
        desk.service.rank()
        assert "trace_id" not in self.line(capsys)


class Stuck(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.stopped = False

    def export(self, spans):
        del spans
        eventually(lambda: self.stopped, 30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.stopped = True


def test_closing_gives_up_on_a_collector_that_does_not_answer(monkeypatch) -> None:
    monkeypatch.setattr(tracing, "_TIMEOUT", 0.05)
    exporter = Stuck()
    tracer = tracing.Tracer(exporter, 1.0)
    tracer.answered("GET", "/info", {}, {}, status=200, moments=(0.0, None, 1.0))
    tracer.close()
    assert exporter.stopped


def test_what_does_not_fit_the_queue_is_dropped(monkeypatch) -> None:
    monkeypatch.setattr(tracing, "_QUEUE", 4)
    monkeypatch.setattr(tracing, "_BATCH", 4)
    monkeypatch.setattr(tracing, "_EVERY", 1000.0)
    exporter = Stuck()
    tracer = tracing.Tracer(exporter, 1.0)
    try:
        for _ in range(50):
            tracer.answered("GET", "/info", {}, {}, status=200, moments=(0.0, None, 1.0))
        assert len(tracer._processor._batch_processor._queue) <= 4
    finally:
        exporter.stopped = True
        tracer.close()


class TestSettings:
    @pytest.mark.parametrize(
        "url", ["collector:4318", "http://collector:4318", "http://me:secret@c/v1/traces"]
    )
    def test_the_endpoint_is_a_url_with_a_path_and_without_a_password(self, url) -> None:
        with pytest.raises(ValueError, match="traces"):
            Settings(traces=url)

    def test_without_the_library_the_start_says_what_to_install(self, monkeypatch) -> None:
        from service.__main__ import _require_traces

        monkeypatch.delitem(sys.modules, "service.tracing")
        monkeypatch.delattr("service.tracing")
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        with pytest.raises(SettingsError, match=r"mdctr\[tracing\]"):
            _require_traces(Settings(traces="http://c/v1/traces"))
        _require_traces(Settings())

    def test_a_service_without_traces_has_no_sdk_in_it(self, publish, bundle) -> None:
        script = f"""
import sys
from starlette.testclient import TestClient
from service.app import create_app
from service.settings import Settings
with TestClient(create_app(Settings(bundle={str(bundle.path)!r}, store={publish.url!r}))) as client:
    client.post("/v1/domains/books/rank", json={{"ids": [10]}})
    assert client.get("/healthz").status_code == 200
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


@contextmanager
def collector():
    """A server that takes OTLP over HTTP; gives its port and what it took."""
    taken: list[ExportTraceServiceRequest] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            taken.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_two_workers_send_what_they_have_before_they_end(bundle, publish, tmp_path) -> None:
    import httpx2

    with collector() as (port, taken):
        settings = {
            "MDCTR_TRACES": f"http://127.0.0.1:{port}/v1/traces",
            "MDCTR_TRACES_SHARE": "1",
            "MDCTR_WORKERS": "2",
            "MDCTR_LOG_FORMAT": "json",
            "MDCTR_DRAIN_SECONDS": "0",
        }
        with running(bundle.path, publish.url, tmp_path / "log", settings) as url:
            for _ in range(40):  # on connections of their own: the kernel spreads them
                answer = httpx2.post(f"{url}/v1/domains/books/rank", json={"ids": [10]})
                assert answer.status_code == 200
            heads = {"traceparent": SAMPLED}
            httpx2.post(f"{url}/v1/domains/books/rank", json={"ids": [10]}, headers=heads)
        sent = [resource for request in taken for resource in request.resource_spans]
    instances, roots = set(), []
    for resource in sent:
        of = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        assert of["service.name"] == "mdctr"
        instances.add(of["service.instance.id"])
        spans = [span for scope in resource.scope_spans for span in scope.spans]
        roots += [span for span in spans if span.name == RANK]
    assert len(instances) == 2
    assert len(roots) == 41
    told = {span.trace_id.hex(): span.parent_span_id.hex() for span in roots}
    assert told[TRACE] == SPAN
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["trace_id"] for line in logged if line["event"] == "answered"} == set(told)

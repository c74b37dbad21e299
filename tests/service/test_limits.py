"""What a connection may ask for: every limit, and framing that two could read in two ways, as bytes."""

import json
import re
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from loadtest.server import service
from service.api.events_schemas import Events
from service.protocol import MOST_AHEAD, MOST_HEAD, MOST_HEADERS, MOST_TARGET
from service.settings import Settings
from tests.service import bundles
from tests.service.conftest import Publisher
from tests.service.test_protocol import BODY, Answers, connection, post

ADMIN = "limits-0123456789abcdef"
CONNECTIONS, SECONDS = 30, 1.0
INFO = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    bundle = bundles.make_bundle(folder / "bundle")
    publisher = Publisher(f"directory:{folder / 'store'}")
    publisher.raw(dict(bundle.packs()))
    settings = {
        "MDCTR_MAX_CONNECTIONS": str(CONNECTIONS),
        "MDCTR_REQUEST_SECONDS": str(SECONDS),
        "MDCTR_MAX_CANDIDATES": "10",
        "MDCTR_MAX_BODY_BYTES": "200000",
        "MDCTR_ADMIN_KEYS": json.dumps({"limits": ADMIN}),
        "MDCTR_USERS": "memory:",
        "MDCTR_DRAIN_SECONDS": "0",
    }
    with service(bundle.path, publisher.url, folder / "log", settings) as url:
        yield int(url.rsplit(":", 1)[1])
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(autouse=True)
def still_answers(port):
    """Whatever a test did, the next request has the same scores."""
    before = asked(port, post())
    yield
    assert asked(port, post())[2]["probabilities"] == before[2]["probabilities"]


def asked(port, request):
    """Status, headers and JSON, if it is any, of the first answer to some bytes."""
    with connection(port) as opened:
        opened.sendall(request)
        status, headers, body = Answers(opened)()
    return status, headers, json.loads(body) if body else None


def everything(opened):
    """What comes until the connection ends."""
    whole = b""
    with suppress(ConnectionResetError):  # by what was sent and not read; the answer came before
        while data := opened.recv(65536):
            whole += data
    return whole


def statuses(answers):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3})", answers)]


def ended(port, request):
    """The statuses of a connection that the service ends by itself."""
    with connection(port) as opened:
        opened.sendall(request)
        return statuses(everything(opened))


# Head


def get(path="/info", *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1")


def test_a_target_may_have_so_many_bytes(port):
    path = "/info?" + "x" * (MOST_TARGET - len("/info?"))
    assert asked(port, get(path))[0] == 200
    assert ended(port, get(path + "x")) == [414]
    assert ended(port, b"GET /" + b"x" * 200_000) == [414]


def test_a_request_may_have_so_many_headers(port):
    lines = [f"X-{at}: y" for at in range(MOST_HEADERS - 1)]
    assert asked(port, get("/info", *lines))[0] == 200
    assert ended(port, get("/info", *lines, "Z: z")) == [431]


def test_headers_may_have_so_many_bytes(port):
    # The target and every name and value count, and nothing else.
    rest = MOST_HEAD - len("/info" + "Host" + "x" + "X")
    assert asked(port, get("/info", "X: " + "y" * rest))[0] == 200
    assert ended(port, get("/info", "X: " + "y" * (rest + 1))) == [431]
    many = [f"X-{at:02}: {'y' * 500}" for at in range(90)]
    assert ended(port, get("/info", *many)) == [431]


@pytest.mark.parametrize("start", [b"X: ", b"X"], ids=["a value", "a name"])
def test_a_header_that_does_not_end_is_not_kept(port, start):
    with connection(port) as opened:
        opened.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n" + start)
        found = b""
        for _ in range(100):  # six megabytes, if all of it were taken
            try:
                opened.sendall(b"y" * 65536)
            except OSError:
                break
            opened.settimeout(0.01)
            try:
                found += opened.recv(1000)
            except OSError:
                continue
            if found:
                break
        else:
            pytest.fail("it is read on and on")
        assert statuses(found) in ([431], [400])


# Body


def test_a_body_may_have_so_many_bytes_however_it_comes(port):
    whole = b'{"ids":[10]' + b" " * (200_000 - 12) + b"}"
    assert asked(port, post(whole))[0] == 200
    assert ended(port, post(whole + b" ")) == [413]
    chunked = post(b"", "/v1/domains/books/rank", "Transfer-Encoding: chunked", length=-1)
    assert ended(port, chunked + b"30d41\r\n" + whole + b" \r\n") == [413]
    # Announced, and never sent: nothing of it is kept, and it is not waited for longer than for any other.
    assert ended(port, post(b"{", length=10**15)) in ([408], [413])


@pytest.mark.parametrize("path", ["/v1/events", "/v1/admin/promote"])
def test_so_do_those_of_other_routes(port, path):
    status, _, body = asked(port, post(b" " * 200_001, path, f"X-API-Key: {ADMIN}"))
    assert (status, body["type"]) == (413, "urn:mdctr:problem:body-too-large")


def test_a_request_may_have_so_many_candidates(port):
    assert asked(port, post(json.dumps({"ids": [10] * 10}).encode()))[0] == 200
    status, _, body = asked(port, post(json.dumps({"ids": [10] * 11}).encode()))
    assert status == 422
    assert "10" in body["detail"]


def test_so_many_events_may_come_at_once(port):
    event = {"user": 1, "domain": "books", "item": 10, "kind": "shown"}
    most = Events.model_json_schema()["properties"]["events"]["maxItems"]
    assert asked(port, post(json.dumps({"events": [event] * most}).encode(), "/v1/events"))[0] == 202
    assert asked(port, post(json.dumps({"events": [event] * (most + 1)}).encode(), "/v1/events"))[0] == 422


@pytest.mark.parametrize(
    "deep", ["[" * 90_000, "[" * 90_000 + "]" * 90_000, '{"a":' * 30_000 + "1" + "}" * 30_000]
)
@pytest.mark.parametrize(
    "path", ["/v1/domains/books/rank", "/v2/models/tiny/infer", "/v1/events", "/v1/admin/promote"]
)
def test_json_that_is_too_deep_is_refused(port, path, deep):
    for body in (deep, f'{{"user":{{"age":{deep}}},"ids":[10]}}', f'{{"ids":{deep}}}'):
        assert asked(port, post(body.encode(), path, f"X-API-Key: {ADMIN}"))[0] in {400, 422}


@pytest.mark.parametrize(
    "body", [b'{"ids":[10],"unit":"\xff"}', b'{"i\xffds":[10]}', b'{"user":{"age":"\xed\xa0\x80"}}']
)
@pytest.mark.parametrize("path", ["/v1/domains/books/rank", "/v2/models/tiny/infer", "/v1/events"])
def test_text_that_is_not_utf_8_is_refused(port, path, body):
    assert asked(port, post(body, path))[0] in {400, 422}


# Time


@pytest.mark.parametrize(
    ("begun", "answers"),
    [
        (b"", []),
        (b"\r\n", []),
        (b"GET", [408]),
        (b"GET /info HTTP/1.1\r\nHost: x\r\nX: ", [408]),
        (b"GET /info HTTP/1.1\r\nHost: x\r\n", [408]),
        (post(BODY, length=len(BODY) + 1), [408]),
        (post(BODY, "/v1/events", length=len(BODY) + 1), [408]),
        (INFO + b"GET", [200, 408]),
        (post() + post(BODY, length=len(BODY) + 1), [200, 408]),
    ],
    ids=str,
)
def test_what_does_not_come_whole_is_not_waited_for(port, begun, answers):
    began = time.monotonic()
    assert ended(port, begun) == answers
    assert time.monotonic() - began >= SECONDS * 0.9


@pytest.mark.parametrize(
    "whole",
    [get("/info", "X: " + "y" * 500), post(BODY + b" " * 500), post(BODY + b" " * 500, "/v1/events")],
    ids=["a head", "a body", "events"],
)
def test_drop_by_drop_is_no_way_to_stay(port, whole):
    with connection(port) as opened:
        opened.settimeout(0.05)
        began = time.monotonic()
        for byte in whole:
            try:
                opened.send(bytes([byte]))
                found = opened.recv(1000)
                break
            except TimeoutError:
                assert time.monotonic() - began < 15, "it is still waited for"
        assert statuses(found) == [408]


def test_a_caller_that_takes_no_answers_is_let_go(port):
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.settimeout(20)
        opened.connect(("127.0.0.1", port))
        sent = 0
        with suppress(ConnectionError):  # what is not read is not answered on and on, nor kept for ever
            while True:
                sent += opened.send(post() * 100)
        # Bounded by what the kernels hold and one read, and not by how much is sent.
        assert sent < 30_000_000


# Connections


def test_so_many_connections_are_taken_and_more_are_told(port):
    with ExitStack() as stack:
        kept = [stack.enter_context(connection(port)) for _ in range(CONNECTIONS)]
        for opened in kept[:3]:
            opened.sendall(INFO)
            assert Answers(opened)()[0] == 200
        refused = stack.enter_context(connection(port))
        assert statuses(everything(refused)) == [503]
    # And there is room again.


def test_so_many_requests_may_wait_on_one_connection(port):
    with connection(port) as opened:
        opened.sendall(INFO * (MOST_AHEAD + 1))
        answers = Answers(opened)
        assert {answers()[0] for _ in range(MOST_AHEAD + 1)} == {200}
    with connection(port) as opened:
        opened.sendall(INFO * (MOST_AHEAD + 50))
        found = statuses(everything(opened))
    # What was taken is answered, and the rest is not begun.
    assert found == [200] * (MOST_AHEAD + 1)


# Framing

HEAD = b"POST /v1/domains/books/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BEHIND = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "request_",
    {
        "two lengths": HEAD + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
        "the same length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
        "a list of lengths": HEAD + b"Content-Length: 15, 15\r\n\r\n" + BODY,
        "a length with a sign": HEAD + b"Content-Length: +15\r\n\r\n" + BODY,
        "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
        "a hexadecimal length": HEAD + b"Content-Length: 0xf\r\n\r\n" + BODY,
        "a length that overflows": HEAD + b"Content-Length: 18446744073709551631\r\n\r\n" + BODY,
        "an empty length": HEAD + b"Content-Length: \r\n\r\n" + BODY,
        "chunks and a length": HEAD + CHUNKED + LENGTH + b"\r\n0\r\n\r\n",
        "a length and chunks": HEAD + LENGTH + CHUNKED + b"\r\n0\r\n\r\n",
        "a coding that is not the last": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "a coding and a length": HEAD + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + BODY,
        "space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "a folded header": HEAD + b"X: y\r\n " + CHUNKED + LENGTH + b"\r\n" + BODY,
        "a line that ends in LF": HEAD + b"X: y\n" + LENGTH + b"\r\n" + BODY,
        "a line that ends in CR": HEAD + b"X: y\r" + LENGTH + b"\r\n" + BODY,
        "a head that ends in LF": (HEAD + LENGTH).replace(b"\r\n", b"\n") + b"\n" + BODY,
        "a NUL in a header": HEAD + b"X: \x00\r\n" + LENGTH + b"\r\n" + BODY,
        "a header without a name": HEAD + b": y\r\n" + LENGTH + b"\r\n" + BODY,
        "a space in a name": HEAD + b"X Y: z\r\n" + LENGTH + b"\r\n" + BODY,
        "a huge chunk": HEAD + CHUNKED + b"\r\nffffffffffffffff\r\n" + BODY,
        "a negative chunk": HEAD + CHUNKED + b"\r\n-1\r\n" + BODY,
        "a chunk with 0x": HEAD + CHUNKED + b"\r\n0xf\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a chunk longer than it says": HEAD + CHUNKED + b"\r\n5\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a chunk line that ends in LF": HEAD + CHUNKED + b"\r\nf\n" + BODY + b"\r\n0\r\n\r\n",
        "HTTP 0.9": b"GET /info\r\n\r\n",
        "HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "another version": HEAD.replace(b"1.1", b"9.9") + LENGTH + b"\r\n" + BODY,
        "a tab in the request line": HEAD.replace(b" HTTP", b"\tHTTP") + LENGTH + b"\r\n" + BODY,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }.items(),
    ids=lambda pair: pair[0],
)  # fmt: skip
def test_doubtful_framing_is_refused_and_nothing_behind_it_is_read(port, request_):
    _, sent = request_
    found = ended(port, sent + BEHIND)
    assert found
    assert set(found) <= {400, 408}  # 408 where the rest of a chunk is waited for
    assert len(found) == 1


def test_requests_before_a_broken_one_are_answered_as_theirs(port):
    """The refusal must not come in the place of an answer that is still being made."""
    with connection(port) as opened:
        opened.sendall(INFO + INFO + b"broken\r\n\r\n" + INFO)
        found = everything(opened)
    assert statuses(found) == [200, 200]
    assert found.count(b'"bundle"') == 2


def test_a_body_that_breaks_off_ends_its_request(port):
    head = post(b"", "/v1/events", "Transfer-Encoding: chunked", length=-1)
    assert ended(port, head + b"5\r\nabcdeX" + BEHIND) == [400]


@pytest.mark.parametrize("token", ["h2c", "websocket", "other"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_protocol_is_spoken_and_who_asks_for_one_is_answered_all_the_same(port, token, method):
    """As Java's client does; its body would else be lost, or its second answer never come."""
    more = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {token}", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    request = post(BODY, "/v1/domains/books/rank", *more) if method == "POST" else get("/info", *more)
    with connection(port) as opened:
        answers = Answers(opened)
        for sent in (request[:-1], request[-1:] + request, request * 50, INFO + request + INFO):
            opened.sendall(sent)
        assert [answers()[0] for _ in range(55)] == [200] * 55
    assert ended(port, request.replace(b"Upgrade, ", b"Upgrade, close, ") + INFO) == [200]


def test_a_tunnel_is_refused(port):
    assert ended(port, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + BEHIND) == [400]


@pytest.mark.parametrize(
    "last", [post(BODY, "/v1/domains/books/rank", "Connection: close"), get("/info", "Connection: close")]
)
def test_nothing_behind_the_last_request_is_answered(port, last):
    assert ended(port, last + INFO + post()) == [200]


def test_the_page_has_the_limits_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text().partition("\n## Limits\n")[2]
    page = page.partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+) ", page, re.MULTILINE))
    told = {name: int(number.replace(",", "")) for name, number in rows.items()}
    settings = Settings.model_fields
    assert told == {
        "bytes of a path with its query": MOST_TARGET,
        "headers": MOST_HEADERS,
        "bytes of a path and headers": MOST_HEAD,
        "requests ahead of their answers": MOST_AHEAD,
        "connections of a worker": settings["max_connections"].default,
        "seconds for a request to come": settings["request_seconds"].default,
        "bytes of a body": settings["max_body_bytes"].default,
        "candidates": settings["max_candidates"].default,
        "events at once": Events.model_json_schema()["properties"]["events"]["maxItems"],
        "requests under way in a worker": settings["permits"].default,
    }

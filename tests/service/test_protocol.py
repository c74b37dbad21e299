"""Requests as bytes on a connection: what is answered where it is read, and what goes the ordinary way."""

import json
import os
import re
import signal
import socket
import time
from contextlib import ExitStack

import pytest

from loadtest.server import service
from service.contract.bundle import Bundle
from tests.service import bundles
from tests.service.conftest import Publisher

PATH = "/v1/domains/books/rank"
BODY = b'{"ids":[10,11]}'
MOST = 2000


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    bundle: Bundle = bundles.make_bundle(folder / "bundle")
    publisher = Publisher(f"directory:{folder / 'store'}")
    publisher.raw(dict(bundle.packs()))
    settings = {"MDCTR_MAX_BODY_BYTES": str(MOST), "MDCTR_RESIDENT_BYTES": "0", "MDCTR_PINNED": '["books"]'}
    with service(bundle.path, publisher.url, folder / "log", settings) as url:
        yield int(url.rsplit(":", 1)[1])


def connection(port):
    return socket.create_connection(("127.0.0.1", port), 10)


@pytest.fixture
def connect(running):
    opened = []

    def connect():
        opened.append(connection(running))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def post(body=BODY, path=PATH, *headers, version="1.1", length=None):
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
    if size >= 0:
        lines.append(f"Content-Length: {size}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Answers:
    """Reads answers from a connection, one after another."""

    def __init__(self, connection):
        self.connection, self.read = connection, b""

    def __call__(self):
        head, _, self.read = self.until(lambda: b"\r\n\r\n" in self.read).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} is sent twice"
            headers[name.lower()] = value
        size = int(headers["content-length"])
        whole = self.until(lambda: len(self.read) >= size)
        self.read = whole[size:]
        return int(first.split()[1]), headers, whole[:size]

    def until(self, enough):
        while not enough():
            data = self.connection.recv(65536)
            assert data, "the connection ended"
            self.read += data
        return self.read

    def closed(self):
        return not self.read and self.connection.recv(1) == b""


def scores(body):
    return json.loads(body)["probabilities"]


def test_a_connection_is_used_again(connect):
    connection = connect()
    answers = Answers(connection)
    for _ in range(3):
        connection.sendall(post())
        status, headers, body = answers()
        assert status == 200
        assert len(scores(body)) == 2
        assert re.fullmatch(
            r"queue;dur=[\d.]+, features;dur=[\d.]+, engine;dur=[\d.]+, total;dur=[\d.]+",
            headers["server-timing"],
        )
        assert headers["x-request-id"] == json.loads(body)["request_id"]
        assert "connection" not in headers


def test_requests_sent_at_once_are_answered_in_their_order(connect):
    """Of the ordinary way and of the direct one, mixed: a scored request behind another kind waits for it."""
    connection = connect()
    info = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
    cold = post(BODY, "/v1/domains/films/rank")  # films is not resident, so it has to be waited for
    connection.sendall(post() + info + post() + cold + post() + post(b"{", PATH) + info)
    answers = Answers(connection)
    found = [answers() for _ in range(7)]
    assert [status for status, _, _ in found] == [200, 200, 200, 200, 200, 400, 200]
    kinds = [json.loads(body).get("domain", json.loads(body).get("title", "info")) for _, _, body in found]
    assert kinds == ["books", "info", "books", "films", "books", "The body is not JSON", "info"]


def test_a_body_may_come_in_pieces_and_in_chunks(connect):
    whole = Answers(one := connect())
    one.sendall(post())
    expected = scores(whole()[2])
    slow = Answers(two := connect())
    for byte in post():
        two.sendall(bytes([byte]))
    assert scores(slow()[2]) == expected
    chunked = Answers(three := connect())
    head = post(b"", PATH, "Transfer-Encoding: chunked", length=-1)
    three.sendall(head + b"6\r\n" + BODY[:6] + b"\r\n" + b"9\r\n" + BODY[6:] + b"\r\n0\r\n\r\n")
    assert scores(chunked()[2]) == expected


def test_a_caller_that_waits_to_be_told_to_go_on_is_told(connect):
    connection = connect()
    connection.sendall(post(b"", PATH, "Expect: 100-continue", length=len(BODY)))
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    connection.sendall(BODY)
    assert Answers(connection)()[0] == 200


def test_a_body_that_is_too_large_ends_the_connection(connect):
    connection = connect()
    connection.sendall(post(b" " * (MOST + 1)))
    answers = Answers(connection)
    status, headers, body = answers()
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["type"] == "urn:mdctr:problem:body-too-large"
    assert answers.closed()


def test_http_1_0_and_connection_close_end_the_connection(connect):
    for request in (post(version="1.0"), post(BODY, PATH, "Connection: close")):
        connection = connect()
        connection.sendall(request)
        answers = Answers(connection)
        assert answers()[0] == 200
        assert answers.closed()


def test_what_cannot_be_in_time_is_refused_before_its_body_is_read(connect):
    connection = connect()
    answers = Answers(connection)
    connection.sendall(post(b"", PATH, "X-Deadline-Ms: 0.000001", "X-Request-ID: mine", length=len(BODY)))
    status, headers, body = answers()
    assert (status, headers["retry-after"], headers["x-request-id"]) == (429, "1", "mine")
    assert json.loads(body)["type"] == "urn:mdctr:problem:overloaded"
    connection.sendall(BODY + post())  # the rest of it is dropped, and the next is answered
    assert answers()[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/domains/cooking/rank", 404),
        ("/v1/domains/b%6foks/rank", 200),
        ("/v1/domains/books/rank?x=1", 200),
        ("/v1/domains/b%3Fx/rank", 404),
        ("/v1/domains//rank", 404),
    ],
)
def test_a_path_is_what_it_says(connect, path, status):
    connection = connect()
    connection.sendall(post(BODY, path))
    answers = Answers(connection)
    assert answers()[0] == status
    connection.sendall(post())
    assert answers()[0] == 200


def test_a_path_with_raw_bytes_is_no_request(connect):
    connection = connect()
    connection.sendall(post(BODY, "/v1/domains/b\xf6ks/rank"))
    assert Answers(connection)()[0] == 400


def test_a_caller_that_hangs_up_harms_nobody(connect):
    for request in (post(), post()[:40], post(b"", PATH, length=50)):
        connection = connect()
        connection.sendall(request)
        connection.close()
    connection = connect()
    connection.sendall(post())
    assert Answers(connection)()[0] == 200


def test_a_service_that_was_told_to_stop_answers_on_and_closes_behind_each_answer(tmp_path):
    bundle = bundles.make_bundle(tmp_path / "bundle")
    publisher = Publisher(f"directory:{tmp_path / 'store'}")
    publisher.raw(dict(bundle.packs()))
    drain = {"MDCTR_DRAIN_SECONDS": "1"}
    with service(bundle.path, publisher.url, tmp_path / "log", drain) as url, ExitStack() as stack:
        port = int(url.rsplit(":", 1)[1])
        under_way, idle = (stack.enter_context(connection(port)) for _ in range(2))
        ask = Answers(idle)
        idle.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        worker = json.loads(ask()[2])["worker"]
        under_way.sendall(post()[:-5])
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGTERM)  # twice, as to a group of processes
        time.sleep(0.3)
        idle.sendall(post())
        status, headers, _ = ask()
        assert (status, headers["connection"]) == (200, "close")
        assert ask.closed()
        time.sleep(1.0)  # it no longer listens, and waits for what it has begun to read
        under_way.sendall(post()[-5:])
        status, headers, _ = Answers(under_way)()
        assert (status, headers["connection"]) == (200, "close")

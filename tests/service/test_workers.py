"""`python -m service run` with two workers: one port, one shelf, one set of metrics."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
from pyarrow import parquet

from loadtest.server import free_port
from service.contract.exposure import read
from tests.service import bundles
from tests.service.conftest import Publisher
from tests.service.waiting import eventually

LONG = 40.0
"""Seconds that processes may take to start on a machine that does other things, too."""


class Run:
    """A service with two workers."""

    def __init__(self, bundle, store, folder, **settings):
        self.port, self.log = free_port(), folder / "log"
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            **os.environ,
            "MDCTR_BUNDLE": str(bundle.path),
            "MDCTR_STORE": store,
            "MDCTR_PORT": str(self.port),
            "MDCTR_WORKERS": "2",
            "MDCTR_DRAIN_SECONDS": "0.3",
            "MDCTR_SHELF": str(folder / "shelf"),
            **settings,
        }
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh", sys.executable, "-m", "service", "run"],
                env=environment,
                stdout=out,
                stderr=out,
            )

    def get(self, path):
        """An answer on a connection of its own; None if there is none."""
        try:
            return httpx2.get(self.url + path, timeout=5)
        except httpx2.TransportError:
            return None

    def rank(self, domain="books"):
        return httpx2.post(f"{self.url}/v1/domains/{domain}/rank", json={"ids": [10]}, timeout=5)

    def workers(self, path="/info"):
        """The processes that answered some new connections, with what they answered."""
        answers = [self.get(path) for _ in range(20)]
        return {answer.json()["worker"]: answer.json() for answer in answers if answer is not None}

    def started(self):
        """The two workers' process ids, once both answer and are ready."""
        eventually(lambda: len(self.workers()) == 2, LONG)
        eventually(lambda: all(self.get("/readyz").status_code == 200 for _ in range(20)), LONG)
        return sorted(self.workers())

    def serving(self):
        """By worker, the versions that serve, by domain."""
        return {
            worker: {state["domain"]: state["serving"] for state in answer["domains"]}
            for worker, answer in self.workers("/v1/domains").items()
        }

    def serves(self, versions):
        """Whether these serve in every worker."""
        return all(versions.items() <= of.items() for of in self.serving().values())

    def metric(self, name):
        lines = self.get("/metrics").text.splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)
        }


@contextmanager
def running(bundle, store, folder, **settings):
    run = Run(bundle, store, folder, **settings)
    try:
        yield run
    finally:
        run.process.terminate()
        try:
            run.process.wait(15)
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def publish(bundle, tmp_path_factory):
    publisher = Publisher(f"directory:{tmp_path_factory.mktemp('store')}")
    publisher.raw(dict(bundle.packs()))
    return publisher


@pytest.fixture(scope="module")
def both(bundle, publish, tmp_path_factory):
    """One service for the tests that leave two workers behind."""
    with running(bundle, publish.url, tmp_path_factory.mktemp("run")) as run:
        run.started()
        yield run


def test_both_answer_on_one_port(both):
    workers = both.started()
    assert both.process.pid not in workers
    assert all(
        Path(f"/proc/{worker}/stat").read_text().split()[3] == str(both.process.pid) for worker in workers
    )
    assert {both.rank().status_code for _ in range(20)} == {200}


def test_both_follow_promotions(both, publish):
    for seed in (1, 2):
        new = publish(bundles.make_pack("books", seed), bundles.make_pack("films", seed))
        eventually(partial(both.serves, new))
        assert len(both.serving()) == 2


def test_more_packs_than_a_shell_allows_files_can_be_mapped(both):
    for worker in both.started():
        limits = Path(f"/proc/{worker}/limits").read_text()
        soft, hard = re.search(r"Max open files +(\S+) +(\S+)", limits).groups()  # type: ignore[union-attr]
        assert soft == hard != "256"


def packs_mapped(pid):
    """Inode and name of each pack that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {tuple(line.split(maxsplit=5)[4:]) for line in lines if ".pack" in line}


def test_both_map_the_same_files_and_none_that_is_gone(both, publish):
    seeds = iter(range(10, 100))
    for _ in range(3):
        new = publish(*[bundles.make_pack(domain, next(seeds)) for domain in ("books", "films", "_general")])
        eventually(partial(both.serves, new))
        one, other = (packs_mapped(worker) for worker in both.started())
        assert one == other
        assert {Path(name).stem for _, name in one} == {"@".join(pair) for pair in new.items()}


def test_metrics_add_up_over_both(both):
    name = 'mdctr_requests_total{domain="books",status="200"}'
    before = both.metric(name).get(name, 0.0)
    for _ in range(30):
        assert both.rank().status_code == 200
    assert {both.metric(name)[name] for _ in range(10)} == {before + 30}
    # Three packs a worker, which share them.
    assert both.metric("mdctr_resident_packs") == {"mdctr_resident_packs": 3}
    assert both.metric("mdctr_ready") == {"mdctr_ready": 1}


def test_a_worker_that_is_killed_comes_back_and_the_other_answers_on(both):
    first, second = both.started()
    started = 'mdctr_requests_total{domain="films",status="200"}'
    for _ in range(10):
        both.rank("films")
    counted = both.metric(started)[started]
    os.kill(first, signal.SIGKILL)
    killed, statuses = time.monotonic(), []
    while first in (workers := both.workers()) or len(workers) < 2:
        with httpx2.Client() as client:
            try:
                statuses.append(client.get(f"{both.url}/healthz").status_code)
            except httpx2.TransportError:
                # A connection that the kernel had given to the one that was killed.
                assert time.monotonic() - killed < 1
        assert time.monotonic() - killed < LONG
    assert set(statuses) == {200}
    assert second in both.started()
    assert {both.rank().status_code for _ in range(20)} == {200}
    # What it counted stays, and its gauges go.
    assert both.metric(started)[started] == counted
    assert both.metric("mdctr_ready") == {"mdctr_ready": 1}
    assert "worker ended" in both.log.read_text()


def test_a_dead_workers_gauges_are_forgotten(bundle, publish, tmp_path):
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with running(bundle, publish.url, tmp_path, TMPDIR=str(scratch)) as run:
        first, _ = run.started()
        assert list(scratch.rglob(f"gauge_*_{first}.db"))
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not list(scratch.rglob(f"gauge_*_{first}.db")), LONG)
        assert list(scratch.rglob(f"counter_{first}.db"))
        run.process.terminate()
        assert run.process.wait(LONG) == 0
    assert list(scratch.glob("mdctr*")) == []


def test_sigterm_drains_both_and_ends_with_0(bundle, publish, tmp_path):
    with running(bundle, publish.url, tmp_path, MDCTR_DRAIN_SECONDS="2") as run:
        workers = run.started()
        run.process.terminate()
        eventually(lambda: all(run.get("/readyz").status_code == 503 for _ in range(10)))
        assert run.get("/readyz").json()["draining"] is True
        assert {run.rank().status_code for _ in range(10)} == {200}
        assert run.process.wait(LONG) == 0
        assert not any(alive(worker) for worker in workers)
        assert run.get("/healthz") is None
        assert "Traceback" not in run.log.read_text()


def test_a_parent_that_is_killed_takes_its_workers_along(bundle, publish, tmp_path):
    with running(bundle, publish.url, tmp_path) as run:
        workers = run.started()
        run.process.kill()
        run.process.wait()
        eventually(lambda: not any(alive(worker) for worker in workers), LONG)
        assert run.get("/healthz") is None


def test_a_taken_port_is_one_line_and_2(bundle, publish, tmp_path):
    for shared in (False, True):
        with socket.socket() as other:
            if shared:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with running(bundle, publish.url, tmp_path, MDCTR_PORT=str(port)) as run:
                assert run.process.wait(LONG) == 2
                text = run.log.read_text()
        assert re.search(rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use", text)
        assert "Traceback" not in text


def test_a_worker_that_cannot_start_is_tried_again_and_the_parent_can_be_stopped(bundle, publish, tmp_path):
    with running(bundle, publish.url, tmp_path, MDCTR_ENGINE="no_such_engine") as run:
        eventually(lambda: run.log.read_text().count("worker ended") >= 3, LONG)
        run.process.terminate()
        assert run.process.wait(LONG) == 0


def test_a_worker_that_is_killed_loses_a_second_of_its_log_and_no_file(bundle, publish, tmp_path):
    log = tmp_path / "exposures"
    with running(bundle, publish.url, tmp_path, MDCTR_EXPOSURES=str(log)) as run:
        one, _ = run.started()
        until, killed, answered = time.time() + 7, 0.0, []
        while time.time() < until:
            try:
                answered.append((run.rank().json()["request_id"], time.time()))
            except httpx2.TransportError:
                continue  # the worker that held this connection is gone
            if not killed and time.time() > until - 2:
                os.kill(one, signal.SIGKILL)
                killed = time.time()
        # All but what a dead worker had taken in its last second; on a busy machine its thread comes later.
        eventually(lambda: _missing(log, answered, killed) == [], LONG)
        eventually(lambda: len(run.workers()) == 2, LONG)
    assert read(log).cut == ()
    assert {path.suffix for path in log.iterdir()} == {".parquet"}
    for path in log.iterdir():
        parquet.read_table(path)


def _missing(log, answered, killed):
    there = set(read(log).exposures["request_id"].to_pylist())
    return [name for name, when in answered if not killed - 3 < when < killed and name not in there]

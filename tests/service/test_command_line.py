"""`python -m service`, as a user calls it."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx2
import pytest

from loadtest.server import free_port
from service.__main__ import app
from service.contract import cli
from tests.service import bundles
from tests.service.waiting import eventually


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a command in this process; gives exit code, stdout and stderr."""

    def run(*arguments, **environment):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(f"MDCTR_{name.upper()}", str(value))
            with pytest.raises(SystemExit) as ended:
                cli.run(lambda: app(arguments))
        return (ended.value.code, *capsys.readouterr())

    return run


def test_check_scores_every_pack_of_the_bundle(bundle, call):
    assert call("check", bundle=bundle.path) == (0, "tiny-00000000: 3 packs score as they should\n", "")


def test_check_fails_with_one_line(tmp_path, bundle, call):
    for environment, reason in (
        ({"bundle": tmp_path}, "is not a bundle"),
        ({"bundle": bundle.path, "engine": "abacus"}, "service.engines has no 'abacus'"),
        ({"bundle": bundle.path, "store": "s3:x"}, "service.stores has no 's3'"),
        ({"bundle": bundle.path, "golden_tolerance": 1e-12}, "golden rows are off"),
        ({"bundle": bundle.path, "surprise": 1}, "MDCTR_SURPRISE"),
        ({"bundle": bundle.path, "port": "x"}, "port:"),
    ):
        code, out, err = call("check", **environment)
        assert (code, out) == (2, "")
        assert reason in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_openapi_needs_no_bundle(call):
    assert "/v1/domains/{domain}/rank" in json.loads(call("openapi")[1])["paths"]


@pytest.fixture
def environment(bundle, publish):
    ours = {key: value for key, value in os.environ.items() if not key.startswith("MDCTR_")}
    return ours | {
        "MDCTR_BUNDLE": str(bundle.path),
        "MDCTR_STORE": publish.url,
        "MDCTR_PORT": str(free_port()),
        "MDCTR_DRAIN_SECONDS": "1",
    }


def test_run_serves_drains_and_exits(environment):
    url = f"http://127.0.0.1:{environment['MDCTR_PORT']}"
    server = subprocess.Popen(
        [sys.executable, "-m", "service", "run"], env=environment, stderr=subprocess.PIPE
    )
    try:
        with httpx2.Client(base_url=url) as client:

            def status(path):
                try:
                    return client.get(path).status_code
                except httpx2.HTTPError:
                    return None

            eventually(lambda: status("/readyz") == 200, within=30)
            answer = client.post("/v1/domains/books/rank", json={"ids": [10]})
            assert answer.status_code == 200
            server.send_signal(signal.SIGTERM)
            told = time.monotonic()
            eventually(lambda: status("/readyz") == 503)  # unready while it still listens
            assert client.post("/v1/domains/books/rank", json={"ids": [10]}).status_code == 200
        assert server.wait(10) == 0
        assert time.monotonic() - told >= 0.9
    finally:
        server.kill()
        log = server.communicate()[1].decode()
    lines = [json.loads(line) for line in log.splitlines()]
    assert sum(line["event"] == "answered" for line in lines) == 2
    assert not any("127.0.0.1:" in line["event"] and "POST" in line["event"] for line in lines)


def test_run_without_a_bundle_exits_2_and_says_why(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "service", "run"],
        env=environment | {"MDCTR_BUNDLE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "is not a bundle" in done.stderr
    assert bundles.BUNDLE not in done.stderr

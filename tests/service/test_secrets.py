"""Secrets are planted wherever one can be given, and everything that comes out is searched for them."""

import json
import os
import subprocess
import sys

import httpx2
import pytest

from tests.service.conftest import Publisher
from tests.service.test_tls import LONG, serving
from tests.service.waiting import eventually

PLANTED = {
    "rank": "planted-rank-0123456789",
    "admin": "planted-admin-0123456789",
    "force": "planted-force-0123456789",
    "store": "planted-store-pw",
    "users": "planted-users-pw",
    "experiments": "planted-experiments-pw",
    "stream": "planted-stream-pw",
    "sentinel": "planted-sentinel-pw",
}
NOWHERE = "127.0.0.1:1"
SETTINGS = {
    "MDCTR_RANK_KEYS": json.dumps({"shop": PLANTED["rank"]}),
    "MDCTR_ADMIN_KEYS": json.dumps({"ann": PLANTED["admin"]}),
    "MDCTR_FORCE_SECRET": PLANTED["force"],
    "MDCTR_USERS": f"redis://u:{PLANTED['users']}@{NOWHERE}/0",
    "MDCTR_EXPERIMENTS": f"redis://u:{PLANTED['experiments']}@{NOWHERE}/0",
    "MDCTR_EXPOSURES_STREAM": f"redis://u:{PLANTED['stream']}@{NOWHERE}/0",
    "MDCTR_STORE": f"redis+sentinel://u:{PLANTED['store']}@{NOWHERE}/primary?sentinel_password={PLANTED['sentinel']}",
}


def clean(text):
    return not any(secret in text for secret in PLANTED.values())


def environment(bundle, tmp_path, **settings):
    exposures = {"MDCTR_EXPOSURES": str(tmp_path / "exposures")}
    return {**os.environ, "MDCTR_BUNDLE": str(bundle.path), **SETTINGS, **exposures, **settings}


def command(*words, **variables):
    done = subprocess.run(
        [sys.executable, "-m", "service", *words],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_shows_none_whatever_it_is_asked(bundle, tmp_path, log_format, workers):
    """Its store, its users and its experiments do not answer, which is when URLs like to be shown."""
    publisher = Publisher(f"directory:{tmp_path / 'store'}")
    publisher.raw(dict(bundle.packs()))
    more = {
        "MDCTR_LOG_FORMAT": log_format,
        "MDCTR_WORKERS": workers,
        "MDCTR_EXPOSURES": str(tmp_path / "log.d"),
    }
    with serving(bundle, "", tmp_path, **{**SETTINGS, **more}) as (port, process):
        url = f"http://127.0.0.1:{port}"

        def status(path, **given):
            try:
                return httpx2.request(given.pop("method", "GET"), url + path, timeout=5, **given)
            except httpx2.TransportError:
                return None

        eventually(lambda: status("/healthz") is not None, LONG)
        keys = [
            {"X-API-Key": PLANTED["rank"]},
            {"X-API-Key": PLANTED["admin"]},
            {"X-API-Key": PLANTED["rank"] + "x"},
        ]
        keys += [{"Authorization": f"Bearer {PLANTED['admin']}"}, {"Authorization": PLANTED["rank"]}, {}]
        shown = ""
        for headers in keys:
            for path in (
                "/info",
                "/readyz",
                "/metrics",
                "/openapi.json",
                "/v1/domains",
                "/v1/admin/packs",
                "/nowhere",
            ):
                answer = status(path, headers=headers)
                shown += answer.text + str(answer.headers)
            for body in (b'{"ids":[10]}', b"{", b"\xff"):
                given = {"content": body, "headers": {"Content-Type": "application/json", **headers}}
                answer = status("/v1/domains/books/rank", method="POST", **given)
                shown += answer.text + str(answer.headers)
        assert "unauthenticated" in shown
        assert clean(shown)
        eventually(lambda: "does not answer" in (tmp_path / "log").read_text(), LONG)
        assert process.poll() is None
    text = (tmp_path / "log").read_text()
    assert "starts" in text
    assert clean(text)


def test_check_and_openapi_show_none(bundle, tmp_path):
    for word in ("check", "openapi"):
        code, text = command(word, **environment(bundle, tmp_path))
        assert code == 0, text
        assert clean(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"MDCTR_STORE": f"redis://u:{PLANTED['store']}@host:port/0"},
        {"MDCTR_STORE": f"redis://u:{PLANTED['store']}@host/0/1"},
        {"MDCTR_STORE": f"redis://u:{PLANTED['store']}@host/0?no={PLANTED['users']}"},
        {"MDCTR_STORE": f"redis://u:{PLANTED['store']}/x@host/0"},
        {"MDCTR_STORE": PLANTED["store"]},
        {"MDCTR_STORE": f"other://{PLANTED['store']}@host"},
        {"MDCTR_RANK_KEYS": PLANTED["rank"]},
        {"MDCTR_RANK_KEYS": json.dumps({"a b": PLANTED["rank"]})},
        {"MDCTR_RANK_KEYS": json.dumps({"a": PLANTED["admin"]})},
        {"MDCTR_FORCE_SECRET": PLANTED["force"][:15]},
        {"MDCTR_PORT": "x"},
        {"MDCTR_STROE": PLANTED["store"]},
        {"MDCTR_TRACES": f"http://u:{PLANTED['store']}@host/v1/traces"},
    ],
    ids=lambda wrong: str(*wrong),
)
@pytest.mark.parametrize("word", ["run", "check"])
def test_a_wrong_setting_is_one_line_without_any(bundle, tmp_path, word, wrong):
    code, text = command(word, **environment(bundle, tmp_path, **{"MDCTR_PORT": "0", **wrong}))
    assert code == 2, text
    assert text.count("\n") == 1
    assert clean(text)
    assert PLANTED["force"][:15] not in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_error_of_ours_is_logged_without_the_values_of_variables(log_format):
    code = f"""
import logging, structlog
from service.telemetry import configure_logs
configure_logs({log_format!r})
def fail(headers):
    raise KeyError("what is wrong")
for log in (structlog.get_logger(), logging.getLogger("uvicorn.error")):
    try:
        fail({{b"x-api-key": b"planted-" + b"rank-0123456789"}})
    except KeyError:
        log.exception("a request failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("what is wrong") >= 2
    assert "Traceback" in done.stderr
    assert clean(done.stderr)

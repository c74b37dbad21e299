"""A Prometheus of one's own, for as long as a block runs: the repository's rules, and one service to ask."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from loadtest.server import free_port
from service.contract.errors import MdctrError

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "prometheus" / "prometheus.yml"
_START = 30.0
"""Seconds that it may take to answer."""


class PrometheusError(MdctrError):
    """It is not installed, did not start, or refused a query."""


class Prometheus:
    """What its HTTP API answers."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=f"{url}/api/v1", timeout=10)

    def now(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of a query that have a value now, or at another moment (seconds since 1970).

        Raises:
            PrometheusError: it is no PromQL.
        """
        return self._asked("query", query=query, **({} if at is None else {"time": at}))

    def between(self, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of a query with their values from `start` to `end`, every `step` seconds.

        Raises:
            PrometheusError: it is no PromQL.
        """
        return self._asked("query_range", query=query, start=start, end=end, step=step)

    def close(self) -> None:
        """Ask no more."""
        self._client.close()

    def _asked(self, path: str, **given: str | float) -> list[dict[str, Any]]:
        answer = self._client.get(f"/{path}", params=given).json()
        if answer["status"] != "success":
            raise PrometheusError(f"{given['query']}: {answer['error']}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def prometheus(service: str, folder: Path, every: float = 1.0) -> Iterator[Prometheus]:
    """Run Prometheus on a free port of the loopback, with `deploy/prometheus` and its rules.

    Args:
        service: URL of what is asked instead of the configuration's target.
        folder: for its data and log.
        every: seconds between two scrapes, and two evaluations of rules.

    Raises:
        PrometheusError: there is no `prometheus` on the PATH, or no repository around this file, or it did
            not start.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise PrometheusError("there is no `prometheus` on the PATH")
    if not CONFIGURATION.is_file():
        raise PrometheusError("this needs the repository: deploy/prometheus is not part of the wheel")
    folder.mkdir(parents=True, exist_ok=True)
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    interval = f"{round(every * 1000)}ms"
    configuration["global"] = dict.fromkeys(configuration["global"], interval)
    configuration["rule_files"] = [str(CONFIGURATION.parent / name) for name in configuration["rule_files"]]
    [job] = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [service.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = [
        binary,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        server = Prometheus(url)
        try:
            yield server
        finally:
            server.close()
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PrometheusError(f"prometheus did not start: {log.read_text(errors='replace')[-500:]}")
        try:
            if httpx2.get(f"{url}/-/ready").status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise PrometheusError(f"prometheus does not answer after {_START:g} s")

"""A pod's end, by the clock of Kubernetes: SIGTERM, and then no more than the grace period."""

from __future__ import annotations

import math
import socket
import time
from pathlib import Path

from service.server import _FINISH
from service.settings import Settings
from tests.deploy.manifests import FINISH
from tests.service import bundles
from tests.service.conftest import Publisher
from tests.service.test_workers import running
from tests.service.waiting import eventually


def test_the_manifests_know_the_servers_patience() -> None:
    assert FINISH == _FINISH


def test_a_client_that_never_sends_the_rest_does_not_hold_up_the_end(tmp_path: Path) -> None:
    bundle = bundles.make_bundle(tmp_path / "tiny")
    publisher = Publisher(f"directory:{tmp_path / 'store'}")
    publisher.raw(dict(bundle.packs()))
    log = tmp_path / "exposures"
    with running(bundle, publisher.url, tmp_path, MDCTR_EXPOSURES=str(log)) as run:
        run.started()
        assert run.rank().status_code == 200
        with socket.create_connection(("127.0.0.1", run.port)) as client:
            client.sendall(b"POST /v1/domains/books/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
            time.sleep(0.2)
            run.process.terminate()
            drain, deadline = 0.3, math.ceil(Settings.model_fields["deadline_ms"].default / 1e3)
            assert run.process.wait(drain + deadline + FINISH + 10) == 0
        eventually(lambda: {path.suffix for path in log.iterdir()} == {".parquet"})

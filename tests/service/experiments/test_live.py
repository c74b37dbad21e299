"""The document that is followed: the last good one stays."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from service.contract import hashing
from service.contract.errors import StoreError
from service.experiments.document import Experiments, ExperimentsError
from service.experiments.live import Live
from service.experiments.place import FilePlace
from service.telemetry import Metrics
from tests.service.experiments.documents import document, experiment


class Taken:
    """What was taken into use; refuses experiments called `missing`, as if their pack was not there yet."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.there = False

    async def __call__(self, found: Experiments | None) -> None:
        names = [] if found is None else [*found.by_name]
        if "missing" in names and not self.there:
            raise ExperimentsError("missing: no such version")
        self.names.append(names)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "experiments.json"


def write(path: Path, *names: str) -> str:
    path.write_text(json.dumps(document(*([experiment(name)] for name in names))))
    return hashing.content(path.read_bytes())


def refusals(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("mdctr_experiments_refused_total") or 0.0


def test_documents_come_and_go_and_the_last_good_one_stays(path, monkeypatch) -> None:
    taken, metrics = Taken(), Metrics()
    live = Live(FilePlace(path), taken, metrics, 60)

    def look() -> str | None:
        """Look, and say why what is there is refused."""
        asyncio.run(live.look())
        return None if live.refused is None else live.refused.reason

    look()
    assert (live.version, taken.names) == (None, [])
    first = write(path, "x")
    look()
    assert look() is None
    assert (live.version, taken.names) == (first, [["x"]])
    assert live.since is not None

    path.write_text("{")
    look()
    reason = look()
    assert reason is not None
    assert reason.startswith("the document is not JSON")
    assert live.version == first
    assert refusals(metrics) == 1
    write(path, "x")  # back to what is followed
    assert look() is None

    missing = write(path, "missing")
    look()
    look()
    assert (live.version, refusals(metrics)) == (first, 2)
    taken.there = True  # the same document, again
    assert look() is None
    assert (live.version, taken.names[-1]) == (missing, ["missing"])

    async def lost(self: object) -> None:
        raise StoreError("away")

    with monkeypatch.context() as away:
        away.setattr(FilePlace, "read", lost)
        look()
    assert live.version == missing
    path.unlink()
    look()
    assert not taken.names[-1]


def test_it_looks_on(path) -> None:
    taken = Taken()

    async def follow() -> None:
        live = Live(FilePlace(path), taken, Metrics(), 0.01)
        following = asyncio.create_task(live.follow())
        write(path, "x")
        while len(taken.names) < 1:
            await asyncio.sleep(0.01)
        write(path, "y")
        while len(taken.names) < 2:
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await live.close()

    asyncio.run(follow())
    assert taken.names == [["x"], ["y"]]

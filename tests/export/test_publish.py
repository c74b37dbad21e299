from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from export import bundle as building
from export.publish import difference, publish
from loadtest.redis_server import redis_server
from service.contract.bundle import Bundle
from service.contract.pack import version
from service.stores._open import open_store
from tests.conftest import Trained
from training import checkpoint


@pytest.fixture(scope="module")
def bundle(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    metrics = checkpoint.load(tiny.folder, tiny.data)[3]
    return building.build(tiny.recipe, tiny.prepared, tiny.model, metrics, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(params=["redis", "directory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "directory":
        yield f"directory:{tmp_path / 'store'}"
    else:
        with redis_server() as redis:
            yield redis


async def live(url: str, bundle: str) -> Mapping[str, str | None]:
    store = open_store(url, bundle)
    try:
        return dict(await store.live())
    finally:
        await store.close()


def test_all_packs_go_live_and_again_changes_nothing(bundle: Bundle, url: str) -> None:
    async def actions() -> list[list[str]]:
        store = open_store(url, bundle.manifest.bundle)
        try:
            planned = await difference(bundle, store)
            assert await store.live() == {}  # a plan changes nothing
            found = [planned, await publish(bundle, store), await publish(bundle, store)]
            for domain, data in bundle.packs():
                assert await store.fetch(domain, version(data)) == data
            return [[each.action for each in plan] for plan in found]
        finally:
            await store.close()

    assert asyncio.run(actions()) == [["add"] * 4, ["add"] * 4, ["keep"] * 4]
    expected = {domain: version(data) for domain, data in bundle.packs()}
    assert asyncio.run(live(url, bundle.manifest.bundle)) == expected


KILLED = """
import os, signal, sys
from importlib import import_module
from export.__main__ import app
module = import_module("service.stores." + sys.argv[3].split(":")[0])
own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
(store,) = (value for value in own if hasattr(value, "promote"))
left = 3
original = store.put

async def put(self, domain, data):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return await original(self, domain, data)

async def promote(self, versions, **about):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(store, sys.argv[1], {"put": put, "promote": promote}[sys.argv[1]])
app(["publish", sys.argv[2], "--store", sys.argv[3]])
"""


@pytest.mark.parametrize("method", ["put", "promote"])
def test_killed_anywhere_the_old_versions_stay_live_and_the_next_run_completes(
    bundle: Bundle, url: str, method: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, method, str(bundle.path), url], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert asyncio.run(live(url, bundle.manifest.bundle)) == {}
    command = [sys.executable, "-m", "export", "publish", str(bundle.path), "--store", url]
    planned = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True).stdout
    assert planned.count(" add ") == 4
    assert asyncio.run(live(url, bundle.manifest.bundle)) == {}
    subprocess.run(command, check=True, capture_output=True)
    assert asyncio.run(live(url, bundle.manifest.bundle)) == {d: version(data) for d, data in bundle.packs()}


def test_a_store_that_does_not_answer_is_exit_code_2(bundle: Bundle) -> None:
    command = [
        sys.executable,
        "-m",
        "export",
        "publish",
        str(bundle.path),
        "--store",
        "redis://127.0.0.1:1/0",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1

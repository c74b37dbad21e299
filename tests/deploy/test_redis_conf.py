"""deploy/redis: its configuration and users under a real service, and a failover of what start.sh starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis as sync_redis

from loadtest.redis_server import RedisServer, _binary
from loadtest.server import free_port, service
from service.contract.bundle import Bundle
from service.contract.errors import StoreError
from service.experiments.place import open_place
from service.stores._open import open_store
from service.stores._protocol import PackStore
from tests.conformance.stores import publish, with_store
from tests.deploy.manifests import REDIS, ROOT, amount, boxes, of_kind, read
from tests.service import bundles
from tests.service.conftest import Publisher
from tests.service.waiting import eventually

PASSWORDS = {"READER": "r1", "WRITER": "w1", "REPLICA": "p1", "SENTINEL": "s1"}
OF_NOBODY = {"auth", "hello", "client", "client|setinfo", "ping", "info", "command", "select"}
"""Commands of connections themselves, and of the tests."""


def directives(text: str) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return dict(lines)


def configuration(folder: Path, without: str = "") -> str:
    """The file, with users beside it; from the reader a command may be taken."""
    acl_text = (REDIS / "users.acl").read_text()
    for name, password in PASSWORDS.items():
        acl_text = acl_text.replace(f"${{{name}_PASSWORD}}", password)
    if without:
        acl_text = re.sub(r"^(user mdctr-reader .*)$", rf"\1 -{without}", acl_text, flags=re.MULTILINE)
    (folder / "users.acl").write_text(acl_text)
    text = (REDIS / "redis.conf").read_text()
    return text.replace("/etc/mdctr/users/users.acl", str(folder / "users.acl"))


@contextmanager
def redis(folder: Path, without: str = "") -> Iterator[RedisServer]:
    """One Redis, which must not wait for replicas."""
    alone = ["--min-replicas-to-write", "0"]
    with closing(
        RedisServer(folder=folder, options=alone, configuration=configuration(folder, without))
    ) as server:
        server.start()
        yield server


def url(server: RedisServer, user: str) -> str:
    password = PASSWORDS[user.removeprefix("mdctr-").upper()]
    return server.url.replace("://", f"://{user}:{password}@")


def acl(text: str, user: str) -> set[str]:
    [line] = re.findall(rf"^\s*(?:ACL SETUSER|user) {user} (.*)$", text, re.MULTILINE)
    return {word.removeprefix("+") for word in str(line).split() if word.startswith("+")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def test_users_may_what_the_page_says_and_read_experiments() -> None:
    ours, page = (REDIS / "users.acl").read_text(), (ROOT / "docs/redis.md").read_text()
    for user in ("mdctr-reader", "mdctr-writer"):
        assert acl(ours, user) == acl(page, user) | {"lindex"}
    assert "experiments" in page[: page.index("lindex")].lower()
    assert not re.search(r">(?!\$\{)", ours), "a password is in the file"


def test_a_service_with_the_readers_rights_serves_and_uses_no_other(bundle: Bundle, tmp_path: Path) -> None:
    with redis(tmp_path) as server:
        Publisher(url(server, "mdctr-writer")).raw(dict(bundle.packs()))
        store = url(server, "mdctr-reader")
        with sync_redis.Redis.from_url(url(server, "sentinel"), protocol=2) as looking:
            before = used(looking)
            with service(bundle.path, store, tmp_path / "log", {"MDCTR_EXPERIMENTS": store}) as at:
                answer = httpx2.post(f"{at}/v1/domains/books/rank", json={"ids": [10]})
                assert answer.status_code == 200
                new = Publisher(url(server, "mdctr-writer"))(bundles.make_pack("books", 1))
                eventually(lambda: serving(at) == new["books"])
            more = {name for name, count in used(looking).items() if count > before.get(name, 0)}
        written = {"xadd", "hset", "hget", "rpush", "set"}  # by the publisher meanwhile
        assert {"eval", "getrange", "xread", "hgetall", "lindex"} <= more
        assert more - written - OF_NOBODY <= acl((REDIS / "users.acl").read_text(), "mdctr-reader")
        assert "permission" not in (tmp_path / "log").read_text().lower()


def serving(at: str) -> str:
    states = httpx2.get(f"{at}/v1/domains").json()["domains"]
    return str(next(state["serving"] for state in states if state["domain"] == "books"))


def used(looking: sync_redis.Redis) -> dict[str, int]:
    stats: Any = looking.info("commandstats")
    return {name.removeprefix("cmdstat_"): found["calls"] for name, found in stats.items()}


async def everything_read(store: PackStore, where: str, promote: Callable[[], Awaitable[None]]) -> None:
    """All that a service asks of its store."""
    live = await store.live()
    assert live["books"]
    for most in (None, 10):  # of nothing, so that it is asked whether it exists
        assert await store.fetch("films", live["films"] or "", most) == b""
    await store.history("books")
    place = open_place(where)
    try:
        assert await place.read() is None
    finally:
        await place.close()
    async with aclosing(store.changes()) as changes:
        await anext(changes)
        await promote()
        await anext(changes)


READS = sorted(acl((REDIS / "users.acl").read_text(), "mdctr-reader"))


@pytest.mark.parametrize("without", ["", *READS])
def test_a_reader_needs_every_command_that_it_may(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.stores.redis._SILENCE", 0.2)
    with redis(tmp_path, without) as server:
        writer, reader = url(server, "mdctr-writer"), url(server, "mdctr-reader")
        versions = Publisher(writer).raw({"books": b"1", "films": b""})

        async def promote() -> None:
            store = open_store(writer, bundles.BUNDLE)
            await store.promote({"books": versions["books"]})
            await store.close()

        def read_all() -> None:
            with_store(reader, lambda store: everything_read(store, reader, promote))

        if not without:
            read_all()
            with pytest.raises(StoreError, match=r"permission|can't run"):
                with_store(reader, lambda store: store.put("books", b"2"))
        else:
            with pytest.raises(StoreError, match=r"permission|can't run"):
                read_all()


def test_limits_leave_room_for_the_log_that_is_rewritten() -> None:
    conf = directives((REDIS / "redis.conf").read_text())
    assert (conf["appendonly"], conf["maxmemory-policy"]) == ("yes", "noeviction")
    most = int(conf["maxmemory"].removesuffix("gb")) * 2**30
    [redises] = of_kind(read(REDIS / "statefulset.yaml"), "StatefulSet")
    [box] = [each for each in boxes([redises]) if each["name"] == "redis"]
    assert amount(box["resources"]["limits"]["memory"]) >= 1.5 * most
    [claim] = redises["spec"]["volumeClaimTemplates"]
    assert amount(claim["spec"]["resources"]["requests"]["storage"]) >= 4 * most
    peers = next(one["value"] for one in box["env"] if one["name"] == "PEERS").split()
    assert len(peers) == redises["spec"]["replicas"] == 3
    assert f"{redises['metadata']['name']}-0.{redises['spec']['serviceName']}" == peers[0]


class Pods:
    """What three pods would run, on addresses of the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.sentinel_port = folder, free_port(), free_port()
        self.names = [f"127.0.0.{number}" for number in (11, 12, 13)]
        self.processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        (folder / "redis.conf").write_text(configuration(folder))
        (folder / "bin").mkdir()
        (folder / "bin" / "redis-server").symlink_to(_binary())

    def start(self, name: str) -> None:
        data = self.folder / name
        data.mkdir(exist_ok=True)
        given = {"SELF": name, "PEERS": " ".join(self.names), "BIND": name, "DATA": str(data)}
        given |= {"PORT": str(self.port), "SENTINEL_PORT": str(self.sentinel_port)}
        given |= {f"{user}_PASSWORD": PASSWORDS[user] for user in ("REPLICA", "SENTINEL")}
        given |= {"CONF": str(self.folder / "redis.conf")}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        for what in ("server", "sentinel"):
            with (data / f"{what}.log").open("ab") as out:
                self.processes[name, what] = subprocess.Popen(
                    [REDIS / "start.sh", what],
                    env={**os.environ, **given, "PATH": path},
                    stdout=out,
                    stderr=out,
                )

    def kill(self, name: str) -> None:
        for what in ("server", "sentinel"):
            process = self.processes.pop((name, what))
            process.send_signal(signal.SIGKILL)
            process.wait()

    def role(self, name: str) -> Any:
        """Who it is: master or slave, and the replicas that it has; nothing where it does not answer."""
        try:
            with sync_redis.Redis(
                name, self.port, username="sentinel", password="s1", socket_timeout=1, protocol=2
            ) as asked:
                told: Any = asked.info("replication")
        except sync_redis.RedisError:
            return None
        return told["role"], told.get("connected_slaves", 0), told.get("master_link_status")

    def seen(self, name: str) -> Any:
        """How many replicas and other sentinels its sentinel knows."""
        try:
            with sync_redis.Redis(
                name, self.sentinel_port, socket_timeout=1, protocol=2, decode_responses=True
            ) as asked:
                told: Any = asked.execute_command("SENTINEL MASTERS")
        except sync_redis.RedisError:
            return None
        return told["mdctr"]["num-slaves"], told["mdctr"]["num-other-sentinels"]

    def url(self, user: str) -> str:
        sentinels = ",".join(f"{name}:{self.sentinel_port}" for name in self.names)
        return f"redis+sentinel://{user}:{PASSWORDS[user.removeprefix('mdctr-').upper()]}@{sentinels}/mdctr"


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path)
    try:
        for name in made.names:
            made.start(name)
        yield made
    finally:
        for name in made.names:
            with suppress(KeyError):
                made.kill(name)


def test_a_pod_that_dies_is_followed_by_another_and_comes_back_as_a_replica(pods: Pods) -> None:
    first, *others = pods.names
    eventually(lambda: pods.role(first) == ("master", 2, None), 20)
    writer = pods.url("mdctr-writer")
    old = publishes(writer, b"1")
    eventually(lambda: all(pods.role(name) == ("slave", 0, "up") for name in others), 20)
    eventually(lambda: all(pods.seen(name) == (2, 2) for name in pods.names), 30)
    pods.kill(first)
    eventually(lambda: any(pods.role(name) == ("master", 1, None) for name in others), 40)
    assert publishes(writer, b"2") != old
    pods.start(first)
    eventually(lambda: pods.role(first) == ("slave", 0, "up"), 40)

    found = with_store(pods.url("mdctr-reader"), lambda store: store.live())
    assert found["books"] not in {None, old}
    assert {pods.role(name)[0] for name in pods.names} == {"master", "slave"}


def publishes(where: str, data: bytes) -> str:
    """Puts and promotes, once that can be done."""
    until = time.monotonic() + 30
    while True:
        try:
            return str(with_store(where, lambda store: publish(store, books=data))["books"])
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)

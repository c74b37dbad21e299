"""What Redis holds, what becomes of a store whose Redis fails, and how much is asked of it."""

import asyncio
import json
import os
import signal
import time
from contextlib import aclosing, closing

import pytest
import redis as sync_redis

from loadtest.redis_server import RedisServer
from service.contract.errors import StoreError, UnknownOption
from service.contract.pack import version
from tests.conformance.stores import publish, with_store
from tests.service.stores.redises import PREFIX, nodes

# What is in Redis


def test_keys_are_those_documented(server):
    """Another program reads these: names and shapes as in docs/redis.md."""

    async def use(store):
        versions = await publish(store, books=b"1", films=b"1")
        await store.promote({"films": None}, run="runs/1", by="ann")
        return versions

    versions = with_store(server.url, use)
    with sync_redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert set(client.keys()) == {
            f"{PREFIX}:live",
            f"{PREFIX}:changes",
            *(f"{PREFIX}:pack:{domain}:{version(b'1')}" for domain in versions),
            *(f"{PREFIX}:history:{domain}" for domain in versions),
        }
        assert client.hgetall(f"{PREFIX}:live") == {**versions, "films": ""}
        (_, first), (_, second) = client.xrange(f"{PREFIX}:changes")
        assert json.loads(first["versions"]) == versions
        assert json.loads(second["versions"]) == {"films": None}
        history = [json.loads(entry) for entry in client.lrange(f"{PREFIX}:history:films", 0, -1)]
        told = {"version": versions["films"], "time": float(first["time"]), "run": "", "by": ""}
        assert history == [
            told,
            {"version": None, "time": float(second["time"]), "run": "runs/1", "by": "ann"},
        ]
        assert abs(float(first["time"]) - time.time()) < 60


def test_the_stream_is_trimmed_and_a_reader_who_missed_some_is_told_to_start_over(server):
    async def use(store):
        one = await store.put("books", b"1")
        await store.promote({"books": one})
        async with aclosing(store.changes()) as changes:
            await anext(changes)
            for _ in range(1300):
                await store.promote({"books": one})
            with pytest.raises(StoreError, match="does not go on"):
                await anext(changes)

    with_store(server.url, use)
    assert 1000 <= server.ask("XLEN", f"{PREFIX}:changes") < 1300


def test_a_redis_that_lost_its_data_is_noticed(server, monkeypatch):
    monkeypatch.setattr("service.stores.redis._SILENCE", 0.1)

    async def use(store):
        await publish(store, books=b"1")
        async with aclosing(store.changes()) as changes:
            await anext(changes)
            server.ask("FLUSHALL")
            with pytest.raises(StoreError, match="does not go on"):
                await anext(changes)
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == {}

    with_store(server.url, use)


def test_what_is_no_promotion_is_a_store_error(server):
    async def use(store):
        await publish(store, books=b"1")
        async with aclosing(store.changes()) as changes:
            await anext(changes)
            server.ask("XADD", f"{PREFIX}:changes", "*", "versions", "[]")
            with pytest.raises(StoreError, match="not a promotion"):
                await anext(changes)
        for entry in ("x", "[]", "{}"):
            server.ask("RPUSH", f"{PREFIX}:history:books", entry)
            with pytest.raises(StoreError, match="not a promotion"):
                await store.history("books")
            server.ask("RPOP", f"{PREFIX}:history:books")

    with_store(server.url, use)


def test_a_pack_too_large_for_redis_is_refused_with_what_to_do(server):
    async def use(store):
        with pytest.raises(StoreError, match="directory:PATH"):
            await store.put("books", bytes(8 * 1024 * 1024 + 1))
        largest = bytes(8 * 1024 * 1024)
        assert await store.fetch("books", await store.put("books", largest)) == largest

    with_store(server.url, use)


# Errors and limits


def test_errors_never_repeat_the_password():
    url = "redis://user:hunter2@127.0.0.1:1/0"
    for broken in (
        url,
        "hunter2",
        url.replace("hunter2", "hunter2/x"),
        url.replace(":1/", ":x/"),
        url.replace("redis:", "what:"),
        url.replace("redis:", "rediss:"),
        "redis+cluster://user:hunter2@127.0.0.1:1,127.0.0.1:2",
        "redis+sentinel://user:hunter2@127.0.0.1:1/main?sentinel_username=u&sentinel_password=hunter2",
        "redis+sentinel://user:hunter2@127.0.0.1:1/main?read_replicas=true",
        "redis://user:hunter2@host..name:1/0",
    ):
        with pytest.raises((StoreError, UnknownOption)) as refused:
            with_store(broken, lambda store: store.live())
        assert "hunter2" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_redis_that_dies_is_a_store_error_everywhere_and_a_new_one_is_found():
    with closing(RedisServer()) as server:
        server.start()

        async def use(store):
            await publish(store, books=b"1")
            changes = store.changes()
            await anext(changes)
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(server.kill)
            with pytest.raises(StoreError):
                await waiting
            for call in (
                store.live(),
                store.put("books", b"2"),
                store.fetch("books", version(b"1")),
                store.promote({"books": version(b"1")}),
                store.history("books"),
                store.kept(),
                store.remove([("books", version(b"1"))], 0),
                anext(store.changes()),
            ):
                with pytest.raises(StoreError):
                    await call
            await asyncio.to_thread(server.start)
            promoted = await publish(store, books=b"3")
            async with aclosing(store.changes()) as again:
                assert await anext(again) == promoted

        with_store(server.url, use)


def test_a_redis_that_is_killed_keeps_what_it_promoted(tmp_path):
    with closing(RedisServer(folder=tmp_path)) as server:
        server.start()

        async def use(store):
            promoted = await publish(store, books=b"1")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert await store.live() == promoted

        with_store(server.url, use)


def test_a_redis_that_stops_answering_is_a_store_error(server, monkeypatch):
    monkeypatch.setattr("service.stores.redis._SILENCE", 0.2)
    process = server.ask("INFO", "server")["process_id"]

    async def use(store):
        promoted = await publish(store, books=b"1")
        async with aclosing(store.changes()) as changes:
            await anext(changes)
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.3)  # once around
            os.kill(process, signal.SIGSTOP)
            try:
                async with asyncio.timeout(1):
                    for call in (store.live(), waiting):
                        with pytest.raises(StoreError, match="Timeout"):
                            await call
            finally:
                os.kill(process, signal.SIGCONT)
        assert await store.live() == promoted

    with_store(f"{server.url}?socket_timeout=0.2", use)


def test_a_reader_hears_nothing_for_long_and_then_of_a_promotion(server, monkeypatch):
    monkeypatch.setattr("service.stores.redis._SILENCE", 0.05)

    async def use(store):
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == {}
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.3)
            assert await publish(store, books=b"1") == await waiting

    with_store(f"{server.url}?socket_timeout=0.2", use)


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_what_is_asked_beyond_the_limit_waits(request, kind):
    redis = request.getfixturevalue(kind)
    url = redis if kind == "cluster" else redis.url
    clients = nodes(url)[:3] if kind == "cluster" else [sync_redis.Redis.from_url(url)]

    async def use(store):
        one = await store.put("books", b"1" * 10_000)
        before = [int(client.info("stats")["total_connections_received"]) for client in clients]
        fetched = await asyncio.gather(*(store.fetch("books", one) for _ in range(200)))
        assert set(map(len, fetched)) == {10_000}
        after = [int(client.info("stats")["total_connections_received"]) for client in clients]
        assert sum(after) - sum(before) <= 4

    with_store(f"{url}?max_connections=4", use)


def test_a_primary_made_a_replica_is_left(server):
    """Its name may by now stand for another server, but connections that stay open lead to the old."""

    async def use(store):
        promoted = await publish(store, books=b"1")
        clients = server.ask("CLIENT", "LIST").count("name=left")
        assert clients == 1
        server.ask("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(StoreError, match="READONLY"):
                await store.promote({"books": None})
            await asyncio.sleep(0.05)
            assert server.ask("CLIENT", "LIST").count("name=left") == 0
        finally:
            server.ask("REPLICAOF", "NO", "ONE")
        assert await store.live() == promoted

    with_store(f"{server.url}?client_name=left", use)

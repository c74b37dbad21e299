"""Sentinels and clusters."""

import asyncio
import re

import pytest

from loadtest.redis_server import redis_sentinel
from service.contract.errors import StoreError, UnknownVersion
from service.contract.pack import version
from service.stores._open import open_store
from tests.conformance.stores import BUNDLE, publish, with_store
from tests.service.stores.redises import PREFIX, again, ask_all, documented, follow, nodes, until

# Sentinels


def test_writer_and_reader_find_the_new_primary():
    with redis_sentinel() as watched:

        async def use(store):
            told: list[dict[str, str | None]] = []
            reader = asyncio.create_task(follow(store, told))
            first = await publish(store, books=b"1")
            await until(lambda: told and told[-1] == first)
            watched.primary.ask("WAIT", 1, 5000)
            await asyncio.to_thread(watched.primary.kill)
            with pytest.raises(StoreError):
                await store.live()
            second = await again(lambda: publish(store, books=b"2"))
            assert await store.live() == second
            await until(lambda: told[-1] == second)
            assert await store.fetch("books", first["books"]) == b"1"
            reader.cancel()

        with_store(watched.url, use)
        assert watched.replica.ask("ROLE")[0] == "master"


def test_packs_come_from_the_replica_and_the_rest_from_the_primary():
    with redis_sentinel() as watched:
        watched.sentinel.ask(*documented("mdctr", "hunter2"))
        url = f"{watched.url}?read_replicas=true&sentinel_username=mdctr&sentinel_password="

        def reads_of(server):
            stats = str(server.ask("INFO", "commandstats"))
            return len(re.findall(r"cmdstat_(?:get|getrange)\b", stats))

        async def use(store):
            one = await store.put("books", b"1")
            two = await store.put("books", b"2")
            await store.promote({"books": one})
            watched.primary.ask("WAIT", 1, 5000)
            assert [await store.fetch("books", one, most) for most in (None, 10)] == [b"1", b"1"]
            assert (reads_of(watched.primary), reads_of(watched.replica)) == (0, 2)
            # As if it had not come yet.
            watched.replica.ask("CONFIG", "SET", "replica-read-only", "no")
            watched.replica.ask("DEL", f"{PREFIX}:pack:books:{two}")
            assert [await store.fetch("books", two, most) for most in (None, 10)] == [b"2", b"2"]
            assert reads_of(watched.primary) == 2
            with pytest.raises(UnknownVersion):
                await store.fetch("books", version(b"never put"))
            await asyncio.to_thread(watched.replica.kill)
            assert await store.fetch("books", one) == b"1"
            assert await store.live() == {"books": one}

        with_store(f"{url}hunter2", use)
        for wrong in (f"{url}hunter3", watched.url.replace("/mdctr", "/other")):
            with pytest.raises(StoreError) as refused:
                with_store(wrong, lambda store: store.live())
            assert "hunter3" not in str(refused.value)


# Clusters


def move_slot(cluster):
    """Move the bundle's slot from the node that has it to another, keys and all."""
    primaries = nodes(cluster)[:3]
    slot = primaries[0].execute_command("CLUSTER", "KEYSLOT", PREFIX)
    names = [node.execute_command("CLUSTER", "MYID") for node in primaries]
    slots = primaries[0].execute_command("CLUSTER", "SLOTS")
    [owner] = [
        place[2] for (*place,) in ((a, b, c[2]) for a, b, c, *_ in slots) if place[0] <= slot <= place[1]
    ]
    source = names.index(owner)
    target = (source + 1) % 3
    port = primaries[target].connection_pool.connection_kwargs["port"]
    primaries[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    primaries[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    keys = primaries[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
    primaries[source].execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
    for node in (primaries[target], primaries[source], primaries[(source + 2) % 3]):
        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])


def test_a_slot_that_moves_is_followed(cluster):
    async def use(store):
        first = await publish(store, books=b"1")
        other = open_store(f"{cluster}?read_replicas=true", BUNDLE)
        assert await other.fetch("books", first["books"]) == b"1"
        told: list[dict[str, str | None]] = []
        reader = asyncio.create_task(follow(store, told))
        await until(lambda: told == [first])
        await asyncio.to_thread(move_slot, cluster)
        # Many at once: each of them is sent on by itself, and none is cut off.
        fetched = await asyncio.gather(*(store.fetch("books", first["books"]) for _ in range(50)))
        assert fetched == [b"1"] * 50
        assert await other.fetch("books", first["books"]) == b"1"
        second = await publish(store, books=b"2")
        await until(lambda: told[-1] == second)
        assert await other.live() == second
        assert [pack.domain for pack in await other.kept()] == ["books", "books"]
        reader.cancel()
        await other.close()

    with_store(cluster, use)


def test_a_cold_client_of_a_cluster_is_asked_much_at_once(cluster):
    async def use(store):
        names = [f"d{number}" for number in range(50)]
        await asyncio.gather(*(store.put(name, b"1") for name in names))
        assert [pack.domain for pack in await store.kept()] == sorted(names)

    with_store(cluster, use)


def test_packs_come_from_a_clusters_replicas(cluster):
    def reads_of(some):
        return sum(len(re.findall(r"cmdstat_get'", str(node.info("commandstats")))) for node in some)

    ask_all(cluster, "CONFIG", "RESETSTAT")

    async def use(store):
        one = await store.put("books", b"1")
        for node in nodes(cluster)[:3]:
            node.execute_command("WAIT", 1, 5000)
        assert await store.fetch("books", one) == b"1"
        assert (reads_of(nodes(cluster)[:3]), reads_of(nodes(cluster)[3:])) == (0, 1)
        with pytest.raises(UnknownVersion):
            await store.fetch("books", version(b"never put"), 5)

    with_store(f"{cluster}?read_replicas=true", use)


def test_what_is_no_cluster_is_a_store_error(server):
    with pytest.raises(StoreError, match="Cluster mode"):
        with_store(
            server.url.replace("redis:", "redis+cluster:").removesuffix("/0"), lambda store: store.live()
        )

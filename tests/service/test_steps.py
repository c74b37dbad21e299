"""`PackCache` on a store in memory: promotions are steps, and what is refused is refused alone.

Scores are compared with numpy's in `Cache.asks`; `EACH` is the size of a tiny pack.
"""

import asyncio

import pytest

from service.contract.errors import NotReady
from tests.service import bundles
from tests.service.caching import EACH, FIRST, bad, caching, in_loop, soon, version_of
from tests.service.memory_store import MemoryStore


@pytest.fixture
def store():
    store = MemoryStore()
    store.publish(*FIRST)
    return store


@in_loop
async def test_a_promotion_of_several_is_one_step_for_those_who_ask(store, bundle):
    """However the packs arrive, no request finds one domain new and another old."""
    async with caching(store, bundle) as cache:
        await cache.settled()
        store.gates["films"] = asyncio.Event()
        old = {"books": version_of(FIRST[1]), "films": version_of(FIRST[2])}
        new = store.publish(bundles.make_pack("books", 1), bundles.make_pack("films", 1))
        await soon(lambda: ("films", new["films"]) in store.fetches)
        for _ in range(20):
            assert {domain: await cache.asks(domain) for domain in old} == old
            await asyncio.sleep(0.001)
        seen: list[dict[str, str]] = []

        async def watch():
            while not seen or seen[-1] == old:
                seen.append({domain: cache.packs.resident[domain].version for domain in old})
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        store.gates["films"].set()
        await watching
        assert seen[-1] == new
        assert {domain: await cache.asks(domain) for domain in old} == new


@in_loop
async def test_nor_does_a_cold_domain_run_ahead_of_those_promoted_with_it(store, bundle):
    async with caching(store, bundle, most_bytes=2 * EACH, pinned=["books"]) as cache:
        await cache.settled()
        assert "films" not in cache.serving()
        assert await cache.asks("films") == version_of(FIRST[2])
        store.publish(bundles.make_pack("more"))
        await soon(lambda: "more" in cache.packs.good)
        assert await cache.asks("more") == version_of(bundles.make_pack("more"))
        assert "films" not in cache.serving()  # cold, and known to be good
        store.gates["books"] = asyncio.Event()
        new = store.publish(bundles.make_pack("books", 1), bundles.make_pack("films", 1))
        await soon(lambda: ("books", new["books"]) in store.fetches)
        assert await cache.asks("films") == version_of(FIRST[2])
        assert await cache.asks("books") == version_of(FIRST[1])
        store.gates["books"].set()
        await soon(lambda: cache.packs.good["films"] == new["films"])
        assert {domain: await cache.asks(domain) for domain in new} == new


@in_loop
async def test_nor_does_a_new_domain(store, bundle):
    async with caching(store, bundle) as cache:
        await cache.settled()
        store.gates["books"] = asyncio.Event()
        new = store.publish(bundles.make_pack("books", 1), bundles.make_pack("cooking"))
        await soon(lambda: ("books", new["books"]) in store.fetches)
        asking = asyncio.create_task(cache.asks("cooking"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        assert await cache.asks("books") == version_of(FIRST[1])
        store.gates["books"].set()
        assert await asking == new["cooking"]
        assert await cache.asks("books") == new["books"]


@in_loop
async def test_a_step_that_the_store_broke_off_is_made_whole_later(store, bundle):
    async with caching(store, bundle) as cache:
        await cache.settled()
        store.unfetchable.add("books")
        new = store.publish(*[bundles.make_pack(name, 1) for name in ("books", "films", "cooking")])
        await soon(lambda: ("books", new["books"]) in store.fetches)
        await asyncio.sleep(0.05)
        assert await cache.asks("films") == version_of(FIRST[2])
        with pytest.raises(NotReady, match="cooking cannot be fetched now"):
            await cache.asks("cooking")
        store.unfetchable.clear()
        await soon(lambda: new.items() <= cache.serving().items())


@in_loop
async def test_a_bad_pack_among_several_is_refused_alone(store, bundle):
    async with caching(store, bundle) as cache:
        await cache.settled()
        new = store.publish(bad("books"), bundles.make_pack("films", 1), bundles.make_pack("cooking"))
        await soon(lambda: "books" in cache.packs.refused)
        assert cache.packs.refused.keys() == {"books"}
        assert await cache.asks("books") == version_of(FIRST[1])
        assert await cache.asks("films") == new["films"]
        assert await cache.asks("cooking") == new["cooking"]
        assert cache.metric("mdctr_packs_refused_total", domain="books") == 1
        assert cache.metric("mdctr_packs_refused_total", domain="films") == 0


@in_loop
async def test_what_was_refused_is_neither_fetched_nor_counted_again(store, bundle, monkeypatch):
    monkeypatch.setattr("service.packs._RECONCILE", 0.02)
    looks = 0
    changes = store.changes

    def counted():
        nonlocal looks
        looks += 1
        return changes()

    store.changes = counted
    async with caching(store, bundle) as cache:
        await cache.settled()
        missing = {"films": "0123456789abcdef"}
        refused = store.publish(bad("books"))
        store.point(missing)
        await soon(lambda: cache.packs.refused.keys() == {"books", "films"})
        before = looks
        await soon(lambda: looks > before + 5)
        assert store.fetches.count(("books", refused["books"])) == 1
        assert store.fetches.count(("films", missing["films"])) > 3  # it may come yet
        for domain in ("books", "films"):
            assert cache.metric("mdctr_packs_refused_total", domain=domain) == 1
            assert await cache.asks(domain) in {version_of(pack) for pack in FIRST}
        store.publish(bundles.make_pack("books", 1))
        await soon(lambda: "books" not in cache.packs.refused)


@in_loop
async def test_a_refusal_stands_while_the_version_before_comes_and_goes(store, bundle, monkeypatch):
    monkeypatch.setattr("service.packs._RECONCILE", 0.02)
    async with caching(store, bundle, most_bytes=2 * EACH) as cache:
        await cache.settled()
        refused = store.publish(bad("books"))
        await soon(lambda: "books" in cache.packs.refused)
        for _ in range(3):
            assert await cache.asks("films") == version_of(FIRST[2])
            assert await cache.asks("books") == version_of(FIRST[1])
            await asyncio.sleep(0.05)
            assert cache.packs.refused["books"].version == refused["books"]
        assert cache.metric("mdctr_packs_refused_total", domain="books") == 1
        assert store.fetches.count(("books", refused["books"])) == 1


@pytest.mark.parametrize("room", [100, 1])
@in_loop
async def test_a_version_that_was_missing_is_taken_once_it_is_there(store, bundle, monkeypatch, room):
    monkeypatch.setattr("service.packs._RECONCILE", 0.05)
    late = bundles.make_pack("cooking")
    store.point({"cooking": version_of(late)})
    async with caching(store, bundle, most_bytes=room * EACH) as cache:
        await cache.settled()
        await soon(lambda: room == 1 or "cooking" in cache.packs.refused)
        with pytest.raises(NotReady, match="there is no version"):
            await cache.asks("cooking")
        store.packs["cooking", version_of(late)] = late.to_bytes()
        await soon(lambda: "cooking" not in cache.packs.refused)
        assert await cache.asks("cooking") == version_of(late)


@in_loop
async def test_empty_promotions_change_nothing(store, bundle):
    async with caching(store, bundle) as cache:
        await cache.settled()
        before = cache.serving()
        for heard in store._followers:
            heard.put_nowait({})
        await asyncio.sleep(0.02)
        assert cache.serving() == before
        assert cache.metric("mdctr_packs_loaded_total", domain="books") == 1

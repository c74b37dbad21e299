"""`PackCache` on a store in memory: what goes, what comes back, and what serves after a start.

Scores are compared with numpy's in `Cache.asks`; `EACH` is the size of a tiny pack.
"""

import asyncio

import numpy as np
import pytest

from service.contract.errors import NotReady, UnknownDomain
from tests.service import bundles
from tests.service.caching import EACH, FIRST, bad, caching, in_loop, soon, version_of
from tests.service.memory_store import MemoryStore

MANY = [bundles.make_pack(f"d{at:03}") for at in range(150)]


@pytest.fixture
def store():
    store = MemoryStore()
    store.publish(*FIRST)
    return store


@in_loop
async def test_the_domain_unused_for_longest_goes_first_and_those_pinned_never(store, bundle):
    store.publish(*MANY[:3])
    async with caching(store, bundle, most_bytes=5 * EACH, pinned=["films"], declared=()) as cache:
        await cache.settled()
        names = [pack.domain for pack in MANY[:3]]
        assert len(cache.packs.resident) == 5
        assert cache.packs.resident.nbytes == 5 * EACH
        assert cache.handles == 5
        for name in [*names, "books"]:
            await cache.asks(name)
        # Room for two beside the general pack and films: those asked for last, and one more.
        assert list(cache.packs.resident)[-3:] == [*names[1:], "books"]
        await cache.asks(names[1])
        await cache.asks(names[0])  # in place of the one unused for longest
        assert cache.serving().keys() == {"_general", "films", "books", names[1], names[0]}
        assert (cache.packs.resident.nbytes, cache.handles) == (5 * EACH, 5)
        assert cache.packs.good.keys() >= {*names, "books", "films"}
        assert cache.metric("mdctr_packs_evicted_total") == cache.metric("mdctr_packs_brought_total") > 0


@pytest.mark.parametrize("tells_all", [False, True])
@in_loop
async def test_what_does_not_fit_is_not_even_fetched(store, bundle, monkeypatch, tells_all):
    """Neither at the start nor with another promotion, nor each time that all is looked at again."""
    store.tells_all = tells_all
    monkeypatch.setattr("service.packs._RECONCILE", 0.02)
    monkeypatch.setattr("service.packs._TOGETHER", 8)
    store.publish(*MANY)
    async with caching(store, bundle, most_bytes=20 * EACH) as cache:
        await cache.settled()
        assert 20 <= len(store.fetches) <= 27
        assert len(cache.packs.resident) == 20
        evicted = cache.metric("mdctr_packs_evicted_total")
        loads: list[tuple[str, str]] = []
        load = cache.packs._loader.load

        def noted(pairs):
            loads.extend(pairs)
            return load(pairs)

        monkeypatch.setattr(cache.packs._loader, "load", noted)
        await asyncio.sleep(0.2)
        assert loads == []
        new = store.publish(bundles.make_pack("books", 1))
        await soon(lambda: cache.serving()["books"] == new["books"])
        await asyncio.sleep(0.1)
        assert loads == [("books", new["books"])]
        assert cache.metric("mdctr_packs_evicted_total") == evicted
        assert await cache.asks(MANY[-1].domain) == version_of(MANY[-1])
        assert len(cache.packs.resident) == 20


@in_loop
async def test_without_room_for_any_each_request_brings_its_own(store, bundle):
    async with caching(store, bundle, most_bytes=0) as cache:
        await cache.settled()
        assert cache.serving().keys() == {"_general"}  # pinned by itself
        for domain, pack in (("books", FIRST[1]), ("films", FIRST[2]), ("books", FIRST[1])):
            assert await cache.asks(domain) == version_of(pack)
            assert cache.serving().keys() == {"_general", domain}
        answers = await asyncio.gather(*(cache.asks(domain) for domain in ("books", "films") * 10))
        assert answers == [version_of(FIRST[1]), version_of(FIRST[2])] * 10


@in_loop
async def test_when_all_are_pinned_all_are_resident_and_one_more(store, bundle):
    store.publish(MANY[0])
    async with caching(store, bundle, most_bytes=EACH, pinned=["books", "films"]) as cache:
        await cache.settled()
        assert cache.serving().keys() == {"_general", "books", "films"}
        await cache.asks(MANY[0].domain)
        assert cache.serving().keys() == {"_general", "books", "films", MANY[0].domain}
        assert cache.metric("mdctr_packs_evicted_total") == 0


@in_loop
async def test_many_requests_at_once_are_one_loading(store, bundle):
    async with caching(store, bundle, most_bytes=0) as cache:
        await cache.settled()
        store.gates["books"] = asyncio.Event()
        asking = [asyncio.create_task(cache.asks("books")) for _ in range(50)]
        await soon(lambda: store.fetches.count(("books", version_of(FIRST[1]))) > 0)
        store.gates["books"].set()
        assert set(await asyncio.gather(*asking)) == {version_of(FIRST[1])}
        assert store.fetches.count(("books", version_of(FIRST[1]))) == 1


@in_loop
async def test_a_pack_evicted_as_soon_as_it_came_does_not_hold_up_the_loop(store, bundle, monkeypatch):
    """Who asks after its loading ended, and before anybody heard of it, begins another."""
    async with caching(store, bundle, most_bytes=0) as cache:
        await cache.settled()
        packs = cache.packs
        serve = packs._serve
        again: list[asyncio.Task[str]] = []

        def serve_and_lose(fresh):
            serve(fresh)
            if fresh.domain == "books" and not again:
                packs.resident.drop("books")
                # The next to run after the loading, before its callbacks do.
                asyncio.get_running_loop().call_soon(
                    lambda: again.append(asyncio.create_task(cache.asks("books")))
                )

        monkeypatch.setattr(packs, "_serve", serve_and_lose)
        assert await cache.asks("books") == version_of(FIRST[1])
        assert await again[0] == version_of(FIRST[1])


@in_loop
async def test_a_pack_in_use_is_not_released(store, bundle):
    async with caching(store, bundle, most_bytes=EACH) as cache:
        await cache.settled()
        with await cache.router.route("books", 10) as held:
            await cache.asks("films")
            assert "books" not in cache.serving()
            inputs = bundles.random_inputs(2, seed=3)
            expected = bundles.logits(FIRST[1].tensors, inputs)
            np.testing.assert_allclose(cache.engine.score(inputs, held.handle), expected, atol=1e-5)
            assert cache.handles == 3
        assert cache.handles == 2
        with pytest.raises(ValueError, match="released"):
            cache.engine.score(inputs, held.handle)


@in_loop
async def test_a_retired_domain_is_gone(store, bundle):
    async with caching(store, bundle) as cache:
        await cache.settled()
        store.point({"books": None})
        await soon(lambda: "books" not in cache.serving())
        assert cache.handles == 2
        with pytest.raises(NotReady):  # it is declared
            await cache.asks("books")
        store.publish(bundles.make_pack("cooking"))
        await soon(lambda: "cooking" in cache.serving())
        store.point({"cooking": None})
        await soon(lambda: "cooking" not in cache.serving())
        with pytest.raises(UnknownDomain):
            await cache.asks("cooking")
        store.point({"never-there": None, "books": version_of(FIRST[1])})
        await soon(lambda: "books" in cache.serving())


@in_loop
async def test_a_domain_retired_while_it_comes_does_not_come(store, bundle):
    async with caching(store, bundle, most_bytes=0) as cache:
        await cache.settled()
        store.gates["books"] = asyncio.Event()
        asking = asyncio.create_task(cache.asks("books"))
        await soon(lambda: ("books", version_of(FIRST[1])) in store.fetches)
        store.point({"books": None})
        await soon(lambda: "books" not in cache.packs.live)
        store.gates["books"].set()
        with pytest.raises(NotReady):
            await asking
        assert "books" not in cache.serving()
        assert "books" not in cache.packs.good


@in_loop
async def test_a_promotion_that_comes_while_a_cold_domain_is_brought_wins(store, bundle):
    async with caching(store, bundle, most_bytes=2 * EACH) as cache:
        await cache.settled()
        await cache.asks("films")
        await cache.asks("books")
        cache.shelf.drop("films", version_of(FIRST[2]))
        store.gates["films"] = asyncio.Event()
        asking = asyncio.create_task(cache.asks("films"))
        await soon(lambda: store.fetches.count(("films", version_of(FIRST[2]))) == 2)
        new = bundles.make_pack("films", 1)
        store.publish(new)
        await soon(lambda: ("films", version_of(new)) in store.fetches)
        store.gates["films"].set()
        assert await asking in {version_of(new), version_of(FIRST[2])}
        await soon(lambda: cache.packs.good["films"] == version_of(new))
        assert await cache.asks("films") == version_of(new)


@in_loop
async def test_a_bad_live_version_of_a_cold_domain_is_answered_by_the_last_good(store, bundle):
    async with caching(store, bundle, most_bytes=EACH) as cache:
        await cache.settled()
        await cache.asks("films")
        await cache.asks("books")
        store.publish(bad("films"))
        await soon(lambda: "films" in cache.packs.refused)
        assert await cache.asks("films") == version_of(FIRST[2])
        cache.shelf.drop("films", version_of(FIRST[2]))
        await cache.asks("books")
        assert await cache.asks("films") == version_of(FIRST[2])


@in_loop
async def test_a_late_start_serves_what_was_good_before_but_not_before_a_retirement(store, bundle):
    store.publish(bundles.make_pack("books", 1))
    store.publish(bad("books"))
    store.point({"films": None})
    store.publish(bad("films"))
    async with caching(store, bundle) as cache:
        await cache.settled()
        assert await cache.asks("books") == version_of(bundles.make_pack("books", 1))
        assert cache.packs.refused.keys() == {"books", "films"}
        with pytest.raises(NotReady, match="golden rows are off"):
            await cache.asks("films")


@in_loop
async def test_what_is_promoted_during_a_look_back_wins(store, bundle):
    store.publish(bundles.make_pack("cooking"))
    store.publish(bad("cooking"))
    async with caching(store, bundle, most_bytes=0) as cache:
        await cache.settled()
        history, gate, looking = store.history, asyncio.Event(), asyncio.Event()

        async def slow(domain):
            steps = await history(domain)
            looking.set()
            await gate.wait()
            return steps

        store.history = slow
        asking = asyncio.create_task(cache.asks("cooking"))
        await looking.wait()
        new = bundles.make_pack("cooking", 1)
        store.publish(new)
        await soon(lambda: cache.packs.good.get("cooking") == version_of(new))
        gate.set()
        assert await asking == version_of(new)
        assert cache.packs.good["cooking"] == version_of(new)


@in_loop
async def test_a_store_that_lost_its_data_takes_nothing_away(store, bundle, monkeypatch):
    monkeypatch.setattr("service.packs._RECONCILE", 0.02)
    async with caching(store, bundle, most_bytes=2 * EACH) as cache:
        await cache.settled()
        await cache.asks("films")
        await cache.asks("books")
        store.pointers.clear()
        store.told.clear()
        store.packs.clear()
        store.disconnect()
        await asyncio.sleep(0.3)
        assert await cache.asks("films") == version_of(FIRST[2])
        assert await cache.asks("books") == version_of(FIRST[1])


@in_loop
async def test_a_cold_domain_comes_from_the_shelf_while_the_store_is_down(store, bundle, monkeypatch):
    monkeypatch.setattr("service.packs._TOGETHER", 1)
    store.publish(*MANY[:2])
    async with caching(store, bundle, most_bytes=3 * EACH) as cache:
        await cache.settled()
        store.cut()
        here, gone = cache.serving().keys() - {"_general"}, MANY[1].domain
        assert gone not in here
        with pytest.raises(NotReady, match="cannot be fetched now: the store is down"):
            await cache.asks(gone)
        store.down = False
        await cache.asks(gone)
        store.cut()
        for _ in range(2):
            for domain in [*here, gone]:
                await cache.asks(domain)


@in_loop
async def test_a_start_without_the_store_serves_what_served_last_and_then_follows(store, bundle, tmp_path):
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        new = store.publish(bundles.make_pack("books", 1))
        await soon(lambda: cache.serving()["books"] == new["books"])
        await asyncio.to_thread(cache.packs.remember)
    served = {**{pack.domain: version_of(pack) for pack in FIRST}, **new}
    assert {path.stem for path in tmp_path.rglob("*.pack")} == {"@".join(pair) for pair in served.items()}
    store.cut()
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        assert cache.packs.from_shelf
        assert cache.serving() == served
        assert cache.router.missing() == []
        for domain in ("books", "films"):
            assert await cache.asks(domain) == served[domain]
        store.down = False
        newer = store.publish(bundles.make_pack("films", 2))
        await soon(lambda: not cache.packs.from_shelf)
        assert cache.serving() == {**served, **newer}


@in_loop
async def test_what_went_wrong_before_it_was_noted_is_still_on_the_shelf(store, bundle, tmp_path):
    """Until the note names another version, a start without the store needs the one that it names."""
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        await asyncio.to_thread(cache.packs.remember)
        new = store.publish(bundles.make_pack("books", 1))
        await soon(lambda: cache.serving()["books"] == new["books"])
    store.cut()
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        assert await cache.asks("books") == version_of(FIRST[1])


@in_loop
async def test_the_shelf_does_not_bring_back_what_the_store_replaced_before_it_failed(
    store, bundle, tmp_path
):
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        await asyncio.to_thread(cache.packs.remember)
    new = store.publish(bundles.make_pack("_general", 1), bundles.make_pack("books", 1))
    store.point({"films": None})
    store.publish(MANY[0])
    store.unfetchable.add(MANY[0].domain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.packs._TOGETHER", 1)
        async with caching(store, bundle, shelf=tmp_path) as cache:
            await soon(lambda: (MANY[0].domain, version_of(MANY[0])) in store.fetches)
            for _ in range(200):
                assert cache.serving() == {"_general": new["_general"], "books": new["books"]}
                await asyncio.sleep(0.001)
            store.unfetchable.clear()
            await cache.settled()
            await soon(lambda: MANY[0].domain in cache.serving())


@in_loop
async def test_a_start_without_store_and_shelf_waits(store, bundle):
    store.cut()
    async with caching(store, bundle) as cache:
        await asyncio.sleep(0.1)
        assert not cache.packs.settled.is_set()
        with pytest.raises(NotReady):
            await cache.asks("books")
        store.down = False
        await cache.settled()
        assert not cache.packs.from_shelf
        assert await cache.asks("books") == version_of(FIRST[1])


@in_loop
async def test_a_start_from_the_shelf_takes_no_more_than_fits(store, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("service.packs._TOGETHER", 4)
    store.publish(*MANY[:30])
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        await asyncio.to_thread(cache.packs.remember)
    store.cut()
    async with caching(store, bundle, shelf=tmp_path, most_bytes=6 * EACH, pinned=[MANY[20].domain]) as cache:
        await cache.settled()
        assert MANY[20].domain in cache.serving()
        assert cache.packs.resident.nbytes == 6 * EACH
        assert cache.metric("mdctr_packs_evicted_total") <= 4
        assert await cache.asks(MANY[29].domain) == version_of(MANY[29])


@in_loop
async def test_shutting_down_while_packs_come_leaves_nothing(store, bundle):
    async with caching(store, bundle, most_bytes=0) as cache:
        await cache.settled()
        store.gates["books"] = asyncio.Event()
        cache.packs.fetch_soon("books")
        await soon(lambda: ("books", version_of(FIRST[1])) in store.fetches)
        cache.packs.close()
        await cache.idle()
        assert cache.handles == 0

"""What every pack store promises, checked for every file in `service.stores` and every variant of one."""

import asyncio
import time
from contextlib import aclosing

import pytest

from service.contract.errors import Conflict, PackError, StoreError, UnknownOption, UnknownVersion
from service.contract.pack import version
from service.stores._names import ITEM_PARTS, ITEMS
from service.stores._open import open_store
from service.stores._protocol import KEPT_HISTORY, Kept, Promotion
from tests.conformance.stores import BUNDLE, publish, with_store


def test_a_new_store_is_empty(url):
    async def use(store):
        assert await store.live() == {}
        assert await store.history("books") == []
        assert await store.kept() == []
        assert await store.remove([("books", version(b"never put"))], 0) == []
        await store.promote({})
        for most in (None, 0, 10):
            with pytest.raises(UnknownVersion):
                await store.fetch("books", version(b"never put"), most)

    with_store(url, use)


def test_put_is_idempotent_and_its_version_is_the_contents(url):
    async def use(store):
        first, again = await store.put("books", b"one"), await store.put("books", b"one")
        assert first == again == version(b"one")
        assert await store.fetch("books", first) == b"one"
        assert await store.live() == {}
        with pytest.raises(UnknownVersion):  # of another domain
            await store.fetch("films", first)

    with_store(url, use)


def test_put_never_overwrites(url, monkeypatch):
    async def use(store):
        monkeypatch.setattr(f"{type(store).__module__}.version", lambda _: "0123456789abcdef")
        await store.put("books", b"first")
        await store.put("books", b"second")
        assert await store.fetch("books", "0123456789abcdef") == b"first"

    with_store(url, use)


def test_promoting_an_unknown_version_promotes_nothing(url):
    async def use(store):
        before = await publish(store, books=b"one", films=b"one")
        new = await store.put("books", b"two")
        with pytest.raises(UnknownVersion, match="films"):
            await store.promote({"books": new, "films": version(b"never put")})
        assert await store.live() == before

    with_store(url, use)


@pytest.mark.parametrize("name", ["../escape", "a/b", "A", "", "a:b"])
def test_what_is_no_domains_name_is_refused(url, name):
    async def use(store):
        for refused in (
            store.put(name, b"one"),
            store.fetch(name, version(b"one")),
            store.promote({name: None}),
            store.history(name),
            store.remove([(name, version(b"one"))], 0),
        ):
            with pytest.raises(StoreError):
                await refused
        assert await store.kept() == []

    with_store(url, use)


def test_the_general_pack_is_put_like_others(url):
    async def use(store):
        assert await publish(store, _general=b"one") == await store.live()

    with_store(url, use)


def test_changes_begin_with_everything_and_go_on_with_each_promotion(url):
    async def use(store):
        start = await publish(store, books=b"1", films=b"1")
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == start
            for data in (b"2", b"3"):
                promoted = await publish(store, books=data)
                told = await anext(changes)
                assert told["books"] == promoted["books"]
                assert {**start, **told} == await store.live()

    with_store(url, use)


def test_changes_miss_nothing_across_a_reconnection(url):
    async def use(store):
        await publish(store, books=b"1", films=b"1")
        async with aclosing(store.changes()) as changes:
            await anext(changes)
        await publish(store, books=b"2")
        await publish(store, films=b"2")
        async with aclosing(store.changes()) as changes:
            assert (
                await anext(changes) == await store.live() == {"books": version(b"2"), "films": version(b"2")}
            )

    with_store(url, use)


def test_a_reader_never_goes_back(url):
    """Every version it is told is at least as new as the one before, while another promotes."""

    async def use(store):
        numbered = [await store.put("books", str(number).encode()) for number in range(40)]

        async def promote():
            other = open_store(url, BUNDLE)
            for one in numbered:
                await other.promote({"books": one})
            await other.close()

        writer = asyncio.create_task(promote())
        told: list[str] = []
        while not told or told[-1] != numbered[-1]:
            async with aclosing(store.changes()) as changes:  # reconnecting all the time
                for _ in range(2):
                    told += (await anext(changes)).values()
                    if told and told[-1] == numbered[-1]:
                        break
        await writer
        positions = [numbered.index(one) for one in told]
        assert positions == sorted(positions)

    with_store(url, use)


def test_a_promotion_is_seen_whole(url):
    async def use(store):
        rounds = [
            {domain: await store.put(domain, str(number).encode()) for domain in ("a", "b", "c")}
            for number in range(20)
        ]
        await store.promote(rounds[0])
        done = asyncio.Event()

        async def promote():
            for versions in rounds[1:]:
                await store.promote(versions)
            done.set()

        async def read():
            while not done.is_set():
                assert await store.live() in rounds
                await asyncio.sleep(0)

        await asyncio.gather(promote(), read())
        assert await store.live() == rounds[-1]

    with_store(url, use)


def test_promotions_of_two_writers_are_both_kept(url):
    async def use(store):
        versions = {f"d{number}": await store.put(f"d{number}", b"x") for number in range(30)}
        await asyncio.gather(*(store.promote({domain: one}) for domain, one in versions.items()))
        assert await store.live() == versions

    with_store(url, use)


def test_a_bundle_does_not_see_anothers_packs(url):
    async def use(store):
        await publish(store, books=b"1")
        other = open_store(url, "other-00000000")
        assert await other.live() == {}
        with pytest.raises(UnknownVersion):
            await other.fetch("books", version(b"1"))
        await other.close()

    with_store(url, use)


def test_ten_thousand_domains_in_one_step(url):
    async def use(store):
        names = [f"d{number}" for number in range(10_000)]
        put = [version(b"x")] * len(names)
        for start in range(0, len(names), 100):
            some = slice(start, start + 100)
            put[some] = await asyncio.gather(*(store.put(name, b"x") for name in names[some]))
        versions = dict(zip(names, put, strict=True))
        await store.promote(versions, expected=dict.fromkeys(names))
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == versions
            await store.promote(dict.fromkeys(names), expected=versions)
            assert await anext(changes) == await store.live() == dict.fromkeys(names)
        assert len(await store.kept()) == len(names)
        gone = await store.remove(versions.items(), 0)
        assert [(pack.domain, pack.version) for pack in gone] == list(versions.items())

    with_store(url, use)


def test_a_pack_is_not_read_where_it_is_larger_than_the_reader_takes(url):
    async def use(store):
        for data in (b"", b"12345"):
            one = await store.put("books", data)
            for most in (5, 6, None):
                assert await store.fetch("books", one, most) == data
        for most in (0, 4):
            with pytest.raises(PackError, match=f"more than {most} bytes"):
                await store.fetch("books", one, most)

    with_store(url, use)


def test_a_retired_domain_stays_known(url):
    async def use(store):
        start = await publish(store, books=b"1", films=b"1")
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == start
            await store.promote({"books": None})
            told = await anext(changes)
            assert told["books"] is None
            assert {**start, **told} == await store.live() == {**start, "books": None}
        async with aclosing(store.changes()) as changes:  # who was away learns of it, too
            assert await anext(changes) == {**start, "books": None}
        assert await store.fetch("books", start["books"]) == b"1"
        await store.promote({"books": start["books"], "never-was": None})
        assert await store.live() == {**start, "never-was": None}

    with_store(url, use)


def test_a_promotion_happens_only_on_what_it_expects(url):
    async def use(store):
        one, two = await store.put("books", b"1"), await store.put("books", b"2")
        await store.promote({"books": one}, expected={"books": None, "films": None})
        for expected in ({"books": None}, {"books": two}, {"books": one, "films": one}):
            with pytest.raises(Conflict, match=r"books|films"):
                await store.promote({"books": two}, expected=expected)
        with pytest.raises(UnknownVersion):
            await store.promote({"books": version(b"never put")}, expected={"books": None})
        assert await store.live() == {"books": one}
        assert len(await store.history("books")) == 1
        await store.promote({"books": None}, expected={"books": one})
        await store.promote({"books": two}, expected={"books": None})
        assert await store.live() == {"books": two}

    with_store(url, use)


def test_of_promotions_that_expect_the_same_one_happens(url):
    async def use(store):
        stores = [store, open_store(url, BUNDLE)]
        put = [await store.put("books", str(number).encode()) for number in range(10)]
        steps = (stores[n % 2].promote({"books": one}, expected={"books": None}) for n, one in enumerate(put))
        ends = await asyncio.gather(*steps, return_exceptions=True)
        assert sorted(map(repr, map(type, ends))) == sorted(map(repr, [type(None)] + [Conflict] * 9))
        assert await store.live() == {"books": put[ends.index(None)]}
        await stores[1].close()

    with_store(url, use)


def test_a_history_says_what_when_and_by_whom(url):
    async def use(store):
        assert await store.history("books") == []
        one = await store.put("books", b"1")
        await store.promote({"books": one}, run="runs/7 \N{SNOWMAN}", by="ann")
        await store.promote({"books": None})
        first, second = await store.history("books")
        assert first == Promotion(one, first.time, "runs/7 \N{SNOWMAN}", "ann")
        assert second == Promotion(None, second.time)
        assert time.time() - 60 < first.time <= second.time <= time.time() + 1

    with_store(url, use)


def test_a_history_is_bounded(url):
    async def use(store):
        put = [await store.put("books", str(number).encode()) for number in range(KEPT_HISTORY + 5)]
        for one in put:
            await store.promote({"books": one})
        assert [promotion.version for promotion in await store.history("books")] == put[-KEPT_HISTORY:]

    with_store(url, use)


def test_what_is_kept_is_listed(url):
    async def use(store):
        for number in range(3):
            await publish(store, **{f"d{number}": b"x" * number, "_general": b"x" * number})
        packs = [Kept("_general", version(b"x" * number), number) for number in range(3)]
        packs += [Kept(f"d{number}", version(b"x" * number), number) for number in range(3)]
        assert await store.kept() == sorted(packs, key=lambda pack: (pack.domain, pack.version))
        other = open_store(url, "other-00000000")
        assert await other.kept() == []
        await other.close()

    with_store(url, use)


def test_what_is_live_or_was_lately_is_not_removed(url):
    async def use(store):
        put = [await store.put("books", str(number).encode()) for number in range(6)]
        # Live is 1; the last distinct versions are 1, 4, 3, 2, and 0; 5 never was live.
        for number in (0, 1, 2, 3, 4, 4, 3, 4):
            await store.promote({"books": put[number]})
        await store.promote({"books": None})
        await store.promote({"books": put[1]})
        everything = [("books", one) for one in put]

        async def removed(spare):
            gone = await store.remove(everything, spare)
            assert all(pack.domain == "books" and pack.nbytes == 1 for pack in gone)
            return {put.index(pack.version) for pack in gone}

        assert await removed(5) == {5}
        assert await removed(3) == {0, 2}
        assert await removed(3) == set()
        assert await removed(1) == {3, 4}
        assert await removed(0) == set()
        assert [pack.version for pack in await store.kept()] == [put[1]]
        with pytest.raises(UnknownVersion):
            await store.promote({"books": put[0]})
        await store.promote({"books": None})
        assert await removed(1) == set()
        assert await removed(0) == {1}

    with_store(url, use)


def test_of_a_promotion_and_a_removal_in_the_same_moment_one_happens(url):
    async def use(store):
        other = open_store(url, BUNDLE)
        won = set()
        for number in range(60):
            old = (await store.live()).get("books")
            one = await store.put("books", str(number).encode())
            steps = [store.promote({"books": one}), other.remove([("books", one)], 0)]
            ends = await asyncio.gather(*(steps if number % 2 else reversed(steps)), return_exceptions=True)
            promoted, removed = ends if number % 2 else reversed(ends)
            live = (await store.live()).get("books")
            if promoted is None:
                assert (removed, live) == ([], one)
            else:
                assert isinstance(promoted, UnknownVersion)
                assert (removed, live) == ([Kept("books", one, len(str(number)))], old)
            if live:
                await store.fetch("books", live)
            won.add(promoted is None)
        assert won == {True, False}
        await other.close()

    with_store(url, use)


def test_item_tables_are_kept_as_packs_are_beside_them(url):
    async def use(store):
        start = await publish(store, books=b"pack")
        part = await store.put(ITEM_PARTS, b"part")
        one, two = [await store.put(ITEMS, data) for data in (b"one", b"two")]
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == start
            await store.promote({ITEMS: one}, run="r", by="ann", expected={ITEMS: None})
            assert (await anext(changes))[ITEMS] == one
        with pytest.raises(Conflict):
            await store.promote({ITEMS: two}, expected={ITEMS: None})
        assert await store.live() == {**start, ITEMS: one}
        assert await store.fetch(ITEM_PARTS, part, 4) == b"part"
        assert [each.domain for each in await store.kept()] == [ITEMS, ITEMS, ITEM_PARTS, "books"]
        gone = await store.remove([(ITEMS, one), (ITEMS, two), (ITEM_PARTS, part)], 1)
        assert [(each.domain, each.version) for each in gone] == [(ITEMS, two), (ITEM_PARTS, part)]
        await store.promote({ITEMS: None})
        assert [step.version for step in await store.history(ITEMS)] == [one, None]

    with_store(url, use)


@pytest.mark.parametrize(
    "url", ["", "nowhere", "s3://bucket", "directory:", "directory+x:y", "redis://host:port/0", ":x", "+x:y"]
)
def test_a_url_that_names_no_store_is_refused(url):
    with pytest.raises(UnknownOption):
        open_store(url, BUNDLE)

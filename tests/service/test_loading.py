"""`Loader`: packs from the shelf or the store, and the one line that says why a pack is refused."""

import asyncio
import json
import threading

import numpy as np
import pytest

from service.contract.errors import StoreError
from service.contract.pack import Base, DomainPack, Golden
from service.loading import Loader, Refusal, discard
from service.resident import Resident
from service.shelf import Shelf
from tests.service import bundles
from tests.service.caching import EACH, caching, in_loop, soon, version_of
from tests.service.memory_store import MemoryStore

PACK = bundles.make_pack("books", 7)
GOOD = PACK.to_bytes()


def changed(domain="books", **parts):
    pack = bundles.make_pack(domain, 7)
    whole = {"bundle": pack.bundle, "domain": domain, "tensors": pack.tensors, "golden": pack.golden, **parts}
    return DomainPack(**whole)


def framed(header, body=b""):
    return len(header).to_bytes(8, "little") + header + body


def announced(nbytes):
    """A file whose header announces a tensor of so many bytes, and that has a hundred."""
    header = {
        "__metadata__": {"mdctr": json.dumps({"format": 2, "bundle": bundles.BUNDLE, "domain": "books"})},
        "pack.rows": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]},
    }
    return framed(json.dumps(header).encode(), bytes(100))


TABLE = PACK.tensors["rows"] + np.float32(1)
ELSEWHERE = Base(
    "0123456789abcdef", {"rows": np.where(np.arange(len(TABLE)) < 2, TABLE, PACK.tensors["rows"])}
)
BAD = {
    "the pack is of bundle other": changed(bundle="other").to_bytes(),
    "it is of domain 'films'": changed("films").to_bytes(),
    "bias is not finite": changed(
        tensors={**PACK.tensors, "bias": np.array([np.nan], np.float32)}
    ).to_bytes(),
    "missing tensor: bias": changed(
        tensors={k: v for k, v in PACK.tensors.items() if k != "bias"}
    ).to_bytes(),
    "unknown tensor: more": changed(tensors={**PACK.tensors, "more": np.zeros(2, np.float32)}).to_bytes(),
    "bias is int32": changed(tensors={**PACK.tensors, "bias": np.zeros(1, np.int32)}).to_bytes(),
    "golden rows are off": changed(golden=Golden(PACK.golden.inputs, PACK.golden.logit + 1)).to_bytes(),
    "calibration must be": changed(calibration=np.array([-1, 0], np.float32)).to_bytes(),
    "not a pack: SafetensorError": GOOD[:-1],
    "not a pack: JSONDecodeError": GOOD[:40],
    "not a pack: RecursionError": framed(b"[" * 100_000),
    "not a pack: TypeError": framed(b"[]"),
    "not a pack": announced(10 * 2**30),
    "more than": GOOD + bytes(2_000_000),
    "the pack has format 3": GOOD.replace(b'\\"format\\": 2', b'\\"format\\": 3'),
    "differences from general pack 0123456789abcdef": changed().to_bytes(ELSEWHERE),
}


@pytest.fixture
def store():
    store = MemoryStore()
    store.publish(*[bundles.make_pack(domain) for domain in ("_general", "books", "films")])
    return store


@pytest.mark.parametrize("reason", BAD)
@in_loop
async def test_a_bad_pack_is_one_line_and_a_count_and_nothing_else_changes(store, bundle, reason, tmp_path):
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        before, handles = cache.serving(), cache.handles
        kept = {path.name for path in tmp_path.rglob("*.pack")}
        put = await store.put("books", BAD[reason])
        await store.promote({"books": put})
        await soon(lambda: "books" in cache.packs.refused)
        refusal = cache.packs.refused["books"]
        assert (refusal.version, refusal.final) == (put, True)
        assert reason in refusal.reason
        assert "\n" not in refusal.reason
        assert len(refusal.reason) < 300
        assert cache.metric("mdctr_packs_refused_total", domain="books") == 1
        assert cache.metric("mdctr_packs_refused_total", domain="films") == 0
        assert (cache.serving(), cache.handles) == (before, handles)
        assert await cache.asks("books") == before["books"]
        assert {path.name for path in tmp_path.rglob("*.pack")} == kept
        store.publish(bundles.make_pack("films", 1))
        await soon(lambda: cache.serving()["films"] == version_of(bundles.make_pack("films", 1)))


@in_loop
async def test_bytes_that_are_not_the_versions_are_refused(store, bundle):
    async with caching(store, bundle) as cache:
        await cache.settled()
        store.packs["books", "0123456789abcdef"] = GOOD
        store.point({"books": "0123456789abcdef"})
        await soon(lambda: "books" in cache.packs.refused)
        expected = f"its content is version {version_of(PACK)}, not 0123456789abcdef"
        assert cache.packs.refused["books"].reason == expected


@pytest.mark.parametrize("domain", ["../books", "Books", "a/b", "", "x" * 65, ".part"])
@in_loop
async def test_what_is_no_domains_name_is_refused_without_asking_for_it(store, bundle, domain, tmp_path):
    async with caching(store, bundle, shelf=tmp_path) as cache:
        await cache.settled()
        asked = len(store.fetches)
        store.point({domain: version_of(PACK)})
        await soon(lambda: domain in cache.packs.refused)
        assert "is not a domain's name" in cache.packs.refused[domain].reason
        assert len(store.fetches) == asked
        store.point({domain: None})
        await soon(lambda: domain not in cache.packs.refused)


@pytest.mark.parametrize("version", ["../../x", "", "x" * 300, "a b", "é" * 16])
@in_loop
async def test_what_is_no_version_is_refused(store, bundle, version):
    async with caching(store, bundle) as cache:
        await cache.settled()
        before = cache.serving()
        store.point({"books": version})
        await soon(lambda: "books" in cache.packs.refused)
        assert cache.serving() == before


@in_loop
async def test_an_engine_that_fails_stops_nothing(store, bundle, monkeypatch):
    async with caching(store, bundle) as cache:
        await cache.settled()
        load = cache.engine.load

        def fails(pack):
            if pack.domain == "books":
                raise MemoryError("no\nroom")
            return load(pack)

        monkeypatch.setattr(cache.engine, "load", fails)
        new = store.publish(bundles.make_pack("books", 1), bundles.make_pack("films", 1))
        await soon(lambda: cache.serving()["films"] == new["films"])
        assert cache.packs.refused["books"].reason == "it cannot be loaded: MemoryError: no"
        assert not cache.packs.refused["books"].final
        assert await cache.asks("books") == version_of(bundles.make_pack("books"))


@pytest.fixture
def loader(store, bundle, tmp_path):
    from service.engines import ort

    engine = ort.open(bundle, 1)
    shelf = Shelf(tmp_path, bundles.BUNDLE, 10**9)
    loader = Loader(store, engine, bundle, shelf, 1e-4)
    yield loader
    assert not engine._handles
    engine.close()


@in_loop
async def test_a_pack_is_fetched_once_and_then_on_the_shelf(store, loader):
    pair = ("books", version_of(bundles.make_pack("books")))
    assert loader.nbytes == EACH
    for _ in range(3):
        (loaded,) = await loader.load([pair])
        assert isinstance(loaded, Resident)
        assert (loaded.domain, loaded.version, loaded.handle.nbytes) == (*pair, EACH)
        for tensor in vars(loaded.handle)["tensors"].values():
            assert not tensor.flags.writeable  # the mapped file itself
        loaded.supersede()
    assert store.fetches == [pair]


@in_loop
async def test_what_lies_on_the_shelf_is_scored_and_comes_from_the_store_if_it_does_not_pass(store, loader):
    pack = bundles.make_pack("books")
    off = DomainPack(
        pack.bundle, "books", pack.tensors, Golden(pack.golden.inputs, pack.golden.logit + np.float32(1))
    )
    loader._shelf.keep(version_of(pack), off)
    (loaded,) = await loader.load([("books", version_of(pack))])
    assert isinstance(loaded, Resident)
    assert store.fetches == [("books", version_of(pack))]
    loaded.supersede()


@in_loop
async def test_answers_come_in_the_order_asked_for(store, loader):
    store.packs["books", "bad"] = b"bad"
    books, films = (version_of(bundles.make_pack(domain)) for domain in ("books", "films"))
    pairs = [("films", films), ("books", "bad"), ("books", books), ("films", "missing"), ("films", films)]
    loaded = await loader.load([*pairs[:2], *pairs[2:4]])
    assert [each.version for each in loaded] == [version for _, version in pairs[:4]]
    assert [isinstance(each, Refusal) for each in loaded] == [False, True, False, True]
    assert [each.final for each in loaded if isinstance(each, Refusal)] == [True, False]
    discard(loaded)
    assert await loader.load([]) == []


@in_loop
async def test_a_store_that_fails_halfway_leaves_nothing_loaded(store, loader):
    books, films = (version_of(bundles.make_pack(domain)) for domain in ("books", "films"))
    discard(await loader.load([("books", books)]))
    store.unfetchable.add("films")
    with pytest.raises(StoreError, match="films cannot be fetched"):
        await loader.load([("books", books), ("films", films), ("_general", "missing")])


@in_loop
async def test_the_loop_goes_on_while_packs_are_hashed_and_scored(store, loader, monkeypatch):
    on = []

    def parsed(*_):
        on.append(threading.current_thread())
        return bundles.make_pack("books")

    monkeypatch.setattr("service.loading.parse", parsed)
    discard(await loader.load([("books", version_of(bundles.make_pack("books")))]))
    assert on[0] is not threading.main_thread()
    assert asyncio.get_running_loop().is_running()

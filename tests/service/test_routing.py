"""Which pack answers, over the wire: cold and unknown domains, deadlines, and starts without the store."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from service.stores.directory import DirectoryStore
from tests.service import bundles
from tests.service.caching import EACH, version_of
from tests.service.conftest import Publisher, running
from tests.service.waiting import eventually

FIRST = {name: version_of(bundles.make_pack(name)) for name in ("_general", "books", "films")}


@pytest.fixture
def slow(monkeypatch):
    """Hold back what is fetched of a domain until the event is set; counts what was asked for."""
    gates: dict[str, threading.Event] = {}
    asked, fetch = [], DirectoryStore._fetch

    def held(store, domain, version, most=None):
        asked.append(domain)
        if domain in gates:
            gates[domain].wait(10)
        return fetch(store, domain, version, most)

    monkeypatch.setattr(DirectoryStore, "_fetch", held)
    yield gates, asked
    for gate in gates.values():
        gate.set()


def refused(answer, status, slug):
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:mdctr:problem:{slug}"
    return answer.json()["detail"]


def test_a_cold_domain_is_waited_for_and_answers_itself(start):
    service = start(resident_bytes=EACH)
    for _ in range(2):
        for domain in ("books", "films"):
            assert service.rank(domain).json()["pack"] == FIRST[domain]
            assert service.state(domain)["resident"] is True
    assert service.metric("mdctr_packs_brought_total") == 4
    assert service.metric("mdctr_packs_evicted_total") == 3
    eventually(lambda: service.metric("mdctr_resident_packs") == 2)
    assert service.metric("mdctr_resident_bytes") == 2 * EACH


def test_a_cold_domain_that_does_not_come_in_time_is_504_and_comes_all_the_same(start, slow):
    gates, asked = slow
    gates["books"] = threading.Event()
    service = start(resident_bytes=0)
    for headers in (None, {"X-Deadline-Ms": "20"}):
        started = time.monotonic()
        detail = refused(service.rank("books", headers=headers), 504, "deadline-exceeded")
        assert detail == "the pack of books did not come in time"
        assert time.monotonic() - started < 2
    assert service.rank("films").json()["pack"] == FIRST["films"]
    gates["books"].set()
    eventually(lambda: service.rank("books", headers={"X-Deadline-Ms": "5000"}).status_code == 200)
    assert asked.count("books") == 1


def test_many_who_wait_for_one_domain_are_one_loading(start, slow):
    gates, asked = slow
    gates["books"] = threading.Event()
    service = start(resident_bytes=0)
    with ThreadPoolExecutor(20) as threads:
        answers = [
            threads.submit(service.rank, "books", headers={"X-Deadline-Ms": "8000"}) for _ in range(20)
        ]
        eventually(lambda: "books" in asked)
        gates["books"].set()
        assert {answer.result().json()["pack"] for answer in answers} == {FIRST["books"]}
    assert asked.count("books") == 1


def test_the_general_pack_answers_for_a_cold_domain_until_it_is_there(start, slow):
    gates, _ = slow
    gates["books"] = threading.Event()
    service = start(resident_bytes=0, cold_domain="general", pinned=["films"])
    for _ in range(3):
        answer = service.rank("books").json()
        assert (answer["pack"], answer["domain"]) == (FIRST["_general"], "books")
    gates["books"].set()
    eventually(lambda: service.rank("books").json()["pack"] == FIRST["books"])
    refused(service.rank("cooking"), 404, "unknown-domain")


@pytest.mark.parametrize("resident_bytes", [10**6, 0])
def test_another_domain_answers_for_those_unknown(start, resident_bytes):
    service = start(unknown_domain="domain:films", resident_bytes=resident_bytes)
    answer = service.rank("cooking").json()
    assert (answer["pack"], answer["domain"]) == (FIRST["films"], "cooking")
    assert service.rank("books").json()["pack"] == FIRST["books"]
    refused(service.rank("_general"), 404, "unknown-domain")


def test_another_domain_that_is_not_there_is_said_to_be_missing(bundle, publish):
    with running(bundle, publish.url, unknown_domain="domain:cooking") as service:
        eventually(lambda: service.rank("books").status_code == 200)
        detail = refused(service.rank("nowhere"), 503, "not-ready")
        assert detail == "the pack of cooking, which answers instead, is not loaded yet"


def test_without_the_store_a_cold_domain_is_503_unless_it_is_on_the_shelf(start, tmp_path):
    service = start(resident_bytes=0)
    assert service.rank("films").json()["pack"] == FIRST["films"]
    store = tmp_path / "store" / bundles.BUNDLE
    store.rename(store.with_name("away"))
    store.touch()  # a file where a folder was: nothing can be read, as if the disk were gone
    detail = refused(service.rank("books"), 503, "not-ready")
    assert "cannot be fetched now" in detail
    assert service.rank("films").json()["pack"] == FIRST["films"]
    assert service.ready()
    store.unlink()
    store.with_name("away").rename(store)
    eventually(lambda: service.rank("books").status_code == 200)
    assert service.rank("films").json()["pack"] == FIRST["films"]


def test_a_start_without_the_store_is_from_the_shelf_and_says_so(bundle, publish, tmp_path):
    shelf, store = tmp_path / "shelf", tmp_path / "store" / bundles.BUNDLE
    with running(bundle, publish.url, shelf=shelf) as service:
        eventually(service.ready)
        assert service.client.get("/readyz").json()["from_shelf"] is False
        last = bundles.make_pack("books", 1)
        publish(last)
        eventually(partial(service.serves, last))
    store.rename(store.with_name("away"))
    store.touch()
    with running(bundle, publish.url, shelf=shelf) as service:
        eventually(service.ready)
        assert service.client.get("/readyz").json()["from_shelf"] is True
        eventually(lambda: service.metric("mdctr_packs_from_shelf") == 1)
        assert service.rank("books").json()["pack"] == version_of(last)
        assert service.rank("films").json()["pack"] == FIRST["films"]
        assert service.metric("mdctr_store_contact_timestamp_seconds") == 0
        store.unlink()
        store.with_name("away").rename(store)
        publish(bundles.make_pack("films", 2))
        eventually(lambda: service.serves(bundles.make_pack("films", 2)))
        assert service.client.get("/readyz").json()["from_shelf"] is False
        eventually(lambda: service.metric("mdctr_packs_from_shelf") == 0)


def test_packs_of_a_damaged_shelf_come_from_the_store(bundle, publish, tmp_path):
    with running(bundle, publish.url, shelf=tmp_path / "shelf") as service:
        eventually(service.ready)
    for path in (tmp_path / "shelf").rglob("*.pack"):
        path.write_bytes(path.read_bytes()[:-1])
    with running(bundle, publish.url, shelf=tmp_path / "shelf") as service:
        eventually(service.ready)
        assert service.rank("books").json()["pack"] == FIRST["books"]
        assert service.metric("mdctr_packs_refused_total", domain="books") == 0


def test_a_retired_domain_is_404_and_comes_back(start, publish, tmp_path):
    service = start()
    publish(bundles.make_pack("cooking"))
    eventually(lambda: service.rank("cooking").status_code == 200)
    Retire(publish.url)("cooking")
    eventually(lambda: service.rank("cooking").status_code == 404)
    publish(bundles.make_pack("cooking"))
    eventually(lambda: service.rank("cooking").status_code == 200)


class Retire(Publisher):
    """Retires domains."""

    def __call__(self, *domains):
        import asyncio

        from service.stores._open import open_store

        async def retire():
            store = open_store(self.url, bundles.BUNDLE)
            await store.promote(dict.fromkeys(domains))
            await store.close()

        asyncio.run(retire())


def test_everything_on_a_full_shelf_still_serves(bundle, publish, tmp_path):
    with running(bundle, publish.url, shelf=tmp_path / "shelf", shelf_bytes=0, resident_bytes=0) as service:
        eventually(service.ready)
        for domain in ("books", "films", "books"):
            assert service.rank(domain, headers={"X-Deadline-Ms": "5000"}).json()["pack"] == FIRST[domain]
    shutil.rmtree(tmp_path / "shelf")

"""Item tables that change while the service runs: what answers is one whole good table, always."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import redis as sync_redis

from loadtest.redis_server import redis_server
from service.contract.edition import PART, Edition, parts
from service.contract.errors import ItemsError
from service.contract.field import PAD
from service.item_shelf import ItemShelf
from service.stores._names import ITEM_PARTS, ITEMS
from tests.service import bundles
from tests.service.conftest import Publisher, running
from tests.service.item_tables import expected, publish, raw, rollback
from tests.service.test_workers import running as two_workers
from tests.service.waiting import eventually

OTHER: dict[str, list[Any]] = {
    "item.id": [500, 13, 12, 11, 10],
    "item.brand": ["zeta", "zeta", "acme", "acme", "zeta"],
    "item.price": [9.0, 1.0, 8.0, 2.0, 4.0],
}
IDS = [10, 11, 12, 13, 500]
OWN = {key: [*column, None] for key, column in bundles.ITEMS.items()} | {"item.id": IDS}
OTHERS = {key: column[::-1] for key, column in OTHER.items()}
"""What `OTHER` says of IDS, in their order; 500 is in no vocabulary."""


@pytest.fixture(scope="module")
def redis_url():
    with redis_server() as url:
        yield url


@pytest.fixture
def stored(request, redis_url, bundle, tmp_path):
    """A store of each kind with the bundle's packs."""
    url = f"directory:{tmp_path / 'store'}"
    if request.param == "redis":
        url = redis_url
        with sync_redis.Redis.from_url(url) as client:
            client.flushall()
    Publisher(url).raw(dict(bundle.packs()))
    return url


either = pytest.mark.parametrize("stored", ["directory", "redis"], indirect=True)
in_redis = pytest.mark.parametrize("stored", ["redis"], indirect=True)


def table(service):
    return service.client.get("/info").json()["item_table"]


def serves(service, version):
    return table(service)["serving"] == version


def refused(service, version):
    return (table(service)["refused"] or {}).get("version") == version


def refusal(service, version):
    """The state of the item table, once a version is refused."""
    eventually(lambda: refused(service, version))
    return table(service)


def scores(service, domain="books", **body):
    answer = service.rank(domain, ids=IDS, **body)
    assert answer.status_code == 200
    return np.array(answer.json()["probabilities"])


def test_a_new_item_has_the_score_of_its_fields(service, publish_items, bundle):
    before = scores(service, user={"age": 40.0})
    np.testing.assert_allclose(before, expected("books", OWN, {"age": 40.0}), atol=1e-6)
    unknown = partial(service.metric, "mdctr_unknown_values_total", field="item.id")
    assert unknown() == 1
    version = publish_items(OTHER)
    eventually(lambda: serves(service, version))
    after = scores(service, user={"age": 40.0})
    np.testing.assert_allclose(after, expected("books", OTHERS, {"age": 40.0}), atol=1e-6)
    assert np.abs(after - before).min() > 1e-4
    assert unknown() == 1
    info = service.client.get("/info").json()
    assert info["items"] == 5
    assert info["item_table"] == {
        "serving": version,
        "live": version,
        "since": info["item_table"]["since"],
        "refused": None,
    }
    assert service.metric("mdctr_items_loaded_total") == 1
    assert service.metric("mdctr_items_since_timestamp_seconds") == info["item_table"]["since"]
    # Item tables are no domain.
    assert {state["domain"] for state in service.client.get("/v1/domains").json()["domains"]} == {
        "_general",
        "books",
        "films",
    }
    assert service.metric("mdctr_packs_refused_total") == 0


@pytest.fixture
def publish_items(service, bundle):
    """Publish to the service's store."""
    runtime = service.client.app.state.runtime
    return partial(publish, runtime.settings.store, bundle)


@either
def test_every_answer_under_traffic_is_of_one_whole_table(bundle, stored):
    tables: dict[str | None, Any] = {None: expected("books", OWN)}
    stop = threading.Event()
    answers, failed = [], []

    def ask(service):
        while not stop.is_set():
            answer = service.rank(ids=IDS)
            if answer.status_code == 200:
                answers.append(answer.json()["probabilities"])
            else:
                failed.append(answer.text)

    with running(bundle, stored) as service:
        eventually(service.ready)
        askers = [threading.Thread(target=ask, args=(service,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        try:
            for round_ in range(6):
                columns = {**OTHER, "item.price": [price + round_ for price in OTHER["item.price"]]}
                reverse = {key: column[::-1] for key, column in columns.items()}
                version = publish(stored, bundle, columns)
                tables[version] = expected("books", reverse)
                eventually(partial(serves, service, version))
                time.sleep(0.1)
            for _ in range(2):
                rollback(stored)
            eventually(lambda: serves(service, list(tables)[-3]))
        finally:
            stop.set()
            for asker in askers:
                asker.join()
    assert not failed
    assert len(answers) > 100
    which = [
        [at for at, known in enumerate(tables.values()) if np.allclose(answer, known, atol=1e-6)]
        for answer in answers
    ]
    assert all(len(found) == 1 for found in which)
    assert {found[0] for found in which} == set(range(len(tables)))


@dataclass(frozen=True)
class Bad:
    """One thing wrong with a table."""

    said: str
    """A part of the reason."""
    array: str = "numbers"
    spoil: Callable[[Any], Any] = lambda array: array
    """That array with the fault."""
    changes: dict[str, str] = field(default_factory=dict)
    """Of the edition."""

    def of(self, bundle):
        """All arrays."""
        arrays = {key: np.array(array) for key, array in bundle.items.arrays.items()}
        own = "numbers" if self.array not in arrays else self.array
        return {**arrays, self.array: self.spoil(arrays[own])}


def with_one(at, value):
    """An array with one other value."""

    def spoil(array):
        array[at] = value
        return array

    return spoil


BAD = {
    "another bundle": Bad("for bundle tiny-ffffffff", changes={"bundle": "tiny-ffffffff"}),
    "another schema": Bad("another schema", changes={"schema_fingerprint": "0" * 64}),
    "a number that is not finite": Bad("not finite", spoil=with_one((2, 0), np.nan)),
    "ids that repeat": Bad("ids repeat", "id", with_one(1, 10)),
    "a row that the model does not have": Bad("a row that", "ids", with_one((1, 0), bundles.SCHEMA.rows)),
    "a negative row": Bad("a row that the model does not", "ids", with_one((1, 0), PAD - 1)),
    "a row 0 of which something is known": Bad("row 0 is not", spoil=with_one((0, 0), 1.0)),
    "ids of another type": Bad("its id are <U", "id", lambda ids: ids.astype(np.str_)),
    "numbers of another type": Bad("its numbers are <i4", spoil=lambda numbers: numbers.astype(np.int32)),
    "a row less": Bad("its numbers are (4, 1), not (5, 1)", spoil=lambda numbers: numbers[:-1]),
    "a column more": Bad("its ids are", "ids", lambda ids: np.repeat(ids, 2, axis=1)),
    "an array more": Bad("half0", "half0"),
}


def test_a_bad_table_is_refused_and_the_last_good_one_serves_on(service, publish_items, bundle):
    runtime = service.client.app.state.runtime
    url = runtime.settings.store
    good = publish_items(OTHER)
    eventually(lambda: serves(service, good))
    for count, bad in enumerate(BAD.values(), 1):
        version = raw(url, bundle, bad.of(bundle), bad.changes)
        found = refusal(service, version)
        assert bad.said in found["refused"]["reason"]
        assert (found["serving"], found["live"]) == (good, version)
        assert service.metric("mdctr_items_refused_total") == count
        np.testing.assert_allclose(scores(service), expected("books", OTHERS), atol=1e-6)
    assert service.ready()
    assert service.client.get("/healthz").status_code == 200
    # A good one ends it.
    again = publish_items({**OTHER, "item.price": [1.0] * 5})
    eventually(lambda: serves(service, again))
    assert table(service)["refused"] is None


def test_what_is_no_edition_is_refused(service, bundle):
    url = service.client.app.state.runtime.settings.store
    for data in (
        b"",
        b"[]",
        b'{"format": 2}',
        b"\xff",
        json.dumps({"format": 1, "arrays": {"../x": 1}}).encode(),
    ):
        version = Publisher(url).raw({ITEMS: data})[ITEMS]
        found = refusal(service, version)
        assert "not an item table" in found["refused"]["reason"]
    np.testing.assert_allclose(scores(service), expected("books", OWN), atol=1e-6)


def test_a_table_that_is_too_large_is_refused_before_it_is_read(start, bundle):
    service = start(items_bytes=100)
    version = publish(service.client.app.state.runtime.settings.store, bundle, OTHER)
    found = refusal(service, version)
    assert "bytes; at most 100 are taken" in found["refused"]["reason"]


@in_redis
def test_a_damaged_part_is_refused_for_ever_and_a_missing_one_until_it_is_there(bundle, stored):
    with running(bundle, stored) as service, sync_redis.Redis.from_url(stored) as client:
        eventually(service.ready)
        arrays = {name: np.array(array) for name, array in bundle.items.arrays.items()}
        arrays["numbers"][1:] += 1
        key = f"mdctr:{{{bundles.BUNDLE}}}:pack:{ITEM_PARTS}:"
        part = Edition.of(bundle, arrays).arrays["numbers"].parts[0]
        client.set(key + part, b"\0" * arrays["numbers"].nbytes)  # before; and put does not overwrite
        version = raw(stored, bundle, arrays)
        found = refusal(service, version)
        assert part in found["refused"]["reason"]

        arrays["numbers"][1:] += 1
        edition = Edition.of(bundle, arrays)
        missing, data = edition.arrays["numbers"].parts[0], bytes(next(parts(arrays["numbers"])))
        version = raw(stored, bundle, arrays)
        client.delete(key + missing)
        if not serves(service, version):  # it may have been read before it was gone
            refusal(service, version)
            client.set(key + missing, data)
        eventually(lambda: serves(service, version), 20)
        assert table(service)["refused"] is None


@in_redis
def test_a_rollback_ends_at_the_bundles_own(bundle, stored):
    with running(bundle, stored) as service:
        eventually(service.ready)
        version = publish(stored, bundle, OTHER)
        eventually(lambda: serves(service, version))
        rollback(stored)
        eventually(lambda: serves(service, None))
        np.testing.assert_allclose(scores(service), expected("books", OWN), atol=1e-6)


def test_a_start_without_the_store_serves_the_table_of_last_time(bundle, tmp_path):
    with redis_server() as url:
        Publisher(url).raw(dict(bundle.packs()))
        version = publish(url, bundle, OTHER)
        for _ in range(2):
            with running(bundle, url, shelf=tmp_path / "shelf") as service:
                eventually(service.ready)
                # Ready is: under the table that was live at the start.
                assert serves(service, version)
                np.testing.assert_allclose(scores(service), expected("books", OTHERS), atol=1e-6)
    with running(bundle, url, shelf=tmp_path / "shelf") as service:
        eventually(service.ready)
        assert (table(service)["serving"], table(service)["live"]) == (version, None)
        np.testing.assert_allclose(scores(service), expected("books", OTHERS), atol=1e-6)
    shutil.rmtree(tmp_path / "shelf" / bundles.BUNDLE / "items")
    with running(bundle, url, shelf=tmp_path / "shelf") as service:
        eventually(service.ready)
        np.testing.assert_allclose(scores(service), expected("books", OWN), atol=1e-6)


def test_a_process_that_starts_while_a_bad_table_is_live_serves_the_one_before(start, service, bundle):
    url = service.client.app.state.runtime.settings.store
    first = publish(url, bundle, OTHER)
    bad = [raw(url, bundle, BAD[name].of(bundle)) for name in ("ids that repeat", "a negative row")]
    late = start()
    eventually(lambda: serves(late, first))
    assert table(late)["refused"]["version"] == bad[1]
    np.testing.assert_allclose(scores(late), expected("books", OTHERS), atol=1e-6)


def test_a_disk_that_takes_nothing_costs_memory(start, bundle, monkeypatch):
    service = start()
    monkeypatch.setattr("service.item_shelf.files.new_folder", full)
    version = publish(service.client.app.state.runtime.settings.store, bundle, OTHER)
    eventually(lambda: serves(service, version))
    np.testing.assert_allclose(scores(service), expected("books", OTHERS), atol=1e-6)


def full(path):
    raise OSError(28, "No space left on device", str(path))


def test_both_workers_map_one_copy(bundle, tmp_path):
    url = f"directory:{tmp_path / 'store'}"
    Publisher(url).raw(dict(bundle.packs()))
    with two_workers(bundle, url, tmp_path) as run:
        run.started()
        for price in (1.0, 2.0):
            columns = {**OTHER, "item.price": [price] * 5}
            version = publish(url, bundle, columns)
            eventually(partial(all_serve, run, version), 20)
            answers = [httpx2.post(f"{run.url}/v1/domains/books/rank", json={"ids": IDS}) for _ in range(10)]
            reverse = {key: column[::-1] for key, column in columns.items()}
            for answer in answers:
                found = answer.json()["probabilities"]
                np.testing.assert_allclose(found, expected("books", reverse), atol=1e-6)
        one, other = (mapped(worker, version) for worker in run.started())
        assert one == other
        assert {Path(name).name for _, name in one} >= {"ids.npy", "numbers.npy"}
        assert run.metric("mdctr_items_loaded_total") == {"mdctr_items_loaded_total": 4}
    log = run.log.read_text()
    assert f'"items":"{version}"' in log
    assert "Traceback" not in log


def all_serve(run, version):
    return {answer["item_table"]["serving"] for answer in run.workers().values()} == {version}


def mapped(pid, version):
    """Inode and name of each file of a table that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {tuple(line.split(maxsplit=5)[4:]) for line in lines if version in line}


@pytest.fixture
def shelf(tmp_path):
    return ItemShelf(tmp_path, bundles.BUNDLE)


def kept(shelf, bundle, seed):
    """Put a table on the shelf; its edition."""
    arrays = {name: np.array(array) for name, array in bundle.items.arrays.items()}
    arrays["numbers"][1:] += seed
    edition = Edition.of(bundle, arrays)
    with shelf.adding(edition.version) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "edition.json").write_bytes(edition.to_bytes())
    return edition


def test_what_is_damaged_on_the_shelf_is_as_if_absent(shelf, bundle, tmp_path):
    edition = kept(shelf, bundle, 0)
    found, arrays = shelf.find(edition.version)
    assert found == edition
    assert not any(array.flags.writeable or array.flags.owndata for array in arrays.values())
    for name in ("ids.npy", "edition.json"):
        edition = kept(shelf, bundle, 1)
        path = tmp_path / bundles.BUNDLE / "items" / edition.version / name
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        assert shelf.find(edition.version) is None
        assert not path.exists()
    for version in ("", ".", "..", "../x", "0123456789abcdef"):
        assert shelf.find(version) is None


def test_the_shelf_keeps_what_serves_and_one_more(shelf, bundle):
    assert shelf.remembered() is None
    versions = []
    for seed in range(4):
        versions.append(kept(shelf, bundle, seed).version)
        time.sleep(0.01)
        shelf.remember(versions[-1])
        assert shelf.remembered() == versions[-1]
    assert [shelf.find(version) is not None for version in versions] == [False, False, True, True]
    shelf.remember(None)
    assert shelf.remembered() is None


def test_one_process_fetches_at_a_time(shelf):
    with shelf.claimed() as first, shelf.claimed() as second:
        assert (first, second) == (True, False)
    with shelf.claimed() as third:
        assert third


def test_arrays_of_many_parts_come_back(bundle):
    wide = np.arange(PART // 4 + 3, dtype=np.float32)
    edition = Edition.of(
        bundle, {"id": np.array(["é", "ab"]), "ids": wide, "numbers": np.zeros((3, 0), np.float32)}
    )
    assert [len(edition.arrays[name].parts) for name in ("id", "ids", "numbers")] == [1, 2, 0]
    assert b"".join(map(bytes, parts(wide))) == wide.tobytes()
    assert edition.nbytes == 16 + wide.nbytes
    assert Edition.from_bytes(edition.to_bytes()) == edition
    stored = edition.arrays["ids"]
    short = {"ids": stored.model_copy(update={"parts": stored.parts[:1]})}
    with pytest.raises(ItemsError, match="not 1 parts"):
        Edition.from_bytes(edition.model_copy(update={"arrays": short}).to_bytes())

"""A new item table of a bundle with item halves: made without a model, and scored by row as by fields."""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
import polars as pl
import pytest

from export import items
from export.bundle import build
from export.parity import BUDGET
from service.contract.bundle import Bundle
from service.contract.items import ItemTable
from service.contract.pack import DomainPack
from service.engines import ort
from service.features import RequestEncoder
from service.resident import sigmoid
from service.stores._open import open_store
from tests.conftest import Trained
from tests.service.conftest import running
from tests.service.item_tables import publish, raw
from tests.service.waiting import eventually
from training import checkpoint
from training.data.prepare import columns


@pytest.fixture(scope="module")
def bundle(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    metrics = checkpoint.load(tiny.folder, tiny.data)[3]
    return build(tiny.recipe, tiny.prepared, tiny.model, metrics, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def url(bundle, tmp_path):
    url = f"directory:{tmp_path / 'store'}"

    async def put():
        store = open_store(url, bundle.manifest.bundle)
        await store.promote({domain: await store.put(domain, data) for domain, data in bundle.packs()})

    asyncio.run(put())
    return url


@pytest.fixture
def table(tiny, bundle):
    """The bundle's items in another order, with other fields, and one that is new."""
    given = columns(tiny.prepared.items(), bundle.schema, "item")
    turned = {
        key: list(np.roll(np.asarray(column, object), 7 if key == "item.id" else 0))
        for key, column in given.items()
    }
    new = {key: column[0] for key, column in turned.items()} | {"item.id": "brand new"}
    return {key: [*column, new[key]] for key, column in turned.items()}


def by_fields(bundle, columns, ids):
    """Probabilities under the first domain's pack, from the fields of a table of these columns."""
    items = ItemTable.encode(bundle.schema, columns)
    encoded = RequestEncoder(bundle, 1000).encode({}, {}, ids, {}).inputs
    request = {name: each for name, each in encoded.items() if name.startswith("request.")}
    taken = items.inputs.take(items.rows(ids))
    fields = {"item.ids": taken.ids, "item.numbers": taken.numbers}
    fed = {
        name: each for name, each in fields.items() if name in {spec.name for spec in bundle.manifest.inputs}
    }
    engine = ort.open(bundle, 1)
    data = dict(bundle.packs())[bundle.manifest.domains[0]]
    pack = DomainPack.from_bytes(data, bundle.base)
    logit = engine.score({**request, **fed}, engine.load(pack))
    scale, shift = pack.calibration
    return sigmoid(scale * logit + shift)


def test_rows_of_a_new_table_score_as_its_fields(bundle, url, table):
    assert bundle.manifest.item_halves is not None  # so known ids, the new one too, are scored by row
    domain, ids = bundle.manifest.domains[0], [*table["item.id"][::3], table["item.id"][-1]]
    with running(bundle, url) as service:
        eventually(service.ready)
        before = service.rank(domain, ids=ids).json()["probabilities"]
        version = publish(url, bundle, table)
        state = lambda: service.client.get("/info").json()["item_table"]  # noqa: E731
        eventually(lambda: state()["serving"] == version)
        after = service.rank(domain, ids=ids).json()["probabilities"]
        np.testing.assert_allclose(after, by_fields(bundle, table, ids), atol=BUDGET)
        assert np.abs(np.subtract(before, after)).max() > 10 * BUDGET

        # Halves of another item than the one in their row are found out.
        with items._arrays(bundle, ItemTable.encode(bundle.schema, table)) as arrays:
            half = next(name for name in arrays if name.startswith("half") and arrays[name].dtype.kind == "f")
            bad = raw(url, bundle, {**arrays, half: arrays[half][::-1] * 2})
            none = {name: each for name, each in arrays.items() if name != half}
            lacking = partial(raw, url, bundle, none)
            eventually(lambda: (state()["refused"] or {}).get("version") == bad)
            assert "item halves are off by" in state()["refused"]["reason"]
            version = lacking()
        eventually(lambda: (state()["refused"] or {}).get("version") == version)
        assert half in state()["refused"]["reason"]
        assert service.rank(domain, ids=ids).json()["probabilities"] == after


def test_parts_that_did_not_change_are_not_sent_again(bundle, url, table, tmp_path):
    publish(url, bundle, table)

    async def add():
        store = open_store(url, bundle.manifest.bundle)
        new = {"item.id": ["newer"]}
        made = await items.make(store, bundle, new, add=True)
        return await items.publish(store, bundle, made)

    changes = asyncio.run(add())
    assert (changes.items, changes.added, changes.changed) == (len(table["item.id"]) + 1, 1, 0)
    again = asyncio.run(add())
    assert (again.sent, again.before) == (0, again.after)


def test_the_prepared_items_are_a_file_of_items(bundle, tiny, tmp_path):
    """What the bundle was made with, given as a file, is the bundle's own table."""
    frame = tiny.prepared.items()
    keys = ["item.id", *(slot.field.key for slot in bundle.schema.scope("item"))]
    path = tmp_path / "items.parquet"
    frame.select(pl.col(list(dict.fromkeys(keys)))).write_parquet(path)
    found = ItemTable.encode(bundle.schema, items.read(path, bundle.schema, bundle.items.dtype))
    for name, array in bundle.items.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)

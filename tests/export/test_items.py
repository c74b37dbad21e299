"""`python -m export items`, as an operator calls it, on the bundle whose scores one can do by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import polars as pl
import pytest

from export import items
from service import editions
from service.contract.bundle import Bundle
from service.contract.edition import MOST
from service.contract.errors import Conflict
from service.contract.items import ItemTable
from service.stores._names import ITEM_PARTS, ITEMS
from service.stores._open import open_store
from tests.export.test_packs_commands import Shell
from tests.service import bundles

ID = bundles.BUNDLE
NEW = {"item.id": [10, 99, 500], "brand": ["zeta", "acme", "never seen"], "item.price": [1.0, 9.0, None]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("MDCTR_STORE", f"directory:{tmp_path / 'store'}")
    return f"directory:{tmp_path / 'store'}"


class Items(Shell):
    """Runs `export items`."""

    def __call__(self, *arguments: object) -> str:
        code, out, err = self.raw("items", *arguments)
        assert (code, err) == (0, "")
        return out

    def refused(self, *arguments: object) -> str:
        code, out, err = self.raw("items", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    def table(self, columns: dict[str, Any], name: str = "new.parquet") -> Any:
        path = self.folder / name
        frame = pl.DataFrame(columns)
        frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
        return path


@pytest.fixture
def shell(capsys, url, tmp_path):
    return Items(capsys, tmp_path)


def ask(url, question):
    async def run():
        store = open_store(url, ID)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(run())


def live(url, bundle):
    """The table that a service would read."""

    async def read(store):
        edition = await editions.read(store, (await store.live())[ITEMS])
        edition.check(bundle, MOST)
        return ItemTable.of(await editions.arrays(store, edition, edition.arrays))

    return ask(url, read)


def same(found: ItemTable, expected: ItemTable) -> None:
    assert found.keys.tolist() == expected.keys.tolist()
    np.testing.assert_array_equal(found.inputs.ids, expected.inputs.ids)
    np.testing.assert_array_equal(found.inputs.numbers, expected.inputs.numbers)


def test_a_file_takes_the_place_of_the_whole_table(shell, url, bundle):
    told = shell.json(bundle.path, shell.table(NEW), "--by", "ann")
    expected: dict[str, Any] = {
        "item.id": NEW["item.id"],
        "item.brand": NEW["brand"],
        "item.price": NEW["item.price"],
    }
    same(live(url, bundle), ItemTable.encode(bundles.SCHEMA, expected))
    assert (told["before"], told["items"], told["added"], told["changed"], told["removed"]) == (
        None,
        3,
        2,
        1,
        3,
    )
    # 99 has an embedding, 500 has none; a column that is not given is unknown, but an empty list is no OOV.
    assert told["unknown"] == {"item.id": 1 / 3, "item.brand": 1 / 3, "item.tags": 0.0}
    assert told["sent"] == told["bytes"] > 0
    (step,) = shell.json(bundle.path, "--list")
    assert (step["version"], step["live"], step["by"], step["items"]) == (told["after"], True, "ann", 3)
    assert step["run"].startswith("new.parquet ")
    assert told["after"] in shell(ID, "--list")
    assert "was live already" in shell(bundle.path, shell.table(NEW))
    assert len(shell.json(ID, "--list")) == 1


def test_added_items_leave_the_others_as_they_are(shell, url, bundle):
    told = shell.json(bundle.path, shell.table({"id": [500, 11], "price": [1.0, 2.0]}), "--add")
    assert (told["items"], told["added"], told["changed"], told["removed"]) == (5, 1, 1, 0)
    columns = {key: [*column, None] for key, column in bundles.ITEMS.items()}
    columns["item.id"][4], columns["item.price"][4], columns["item.price"][1] = 500, 1.0, 2.0
    same(live(url, bundle), ItemTable.encode(bundles.SCHEMA, columns))
    # And on top of what is live, not of the bundle's.
    told = shell.json(bundle.path, shell.table({"id": [12], "brand": ["acme"]}), "--add")
    columns["item.brand"][2] = "acme"
    assert (told["items"], told["added"], told["changed"]) == (5, 0, 1)
    same(live(url, bundle), ItemTable.encode(bundles.SCHEMA, columns))
    assert told["sent"] < told["bytes"]


def test_a_csv_says_the_same(shell, bundle):
    parquet = {"item.id": [10, 20], "tags": [["new", "old"], ["old"]], "price": [1.5, None]}
    csv = {"item.id": ["10", "20"], "tags": ["new|old", "old"], "price": ["1.5", None]}
    first = shell.json(bundle.path, shell.table(parquet), "--dry-run")
    assert shell.json(bundle.path, shell.table(csv, "new.csv"), "--dry-run") == first


def test_a_dry_run_changes_nothing(shell, url, bundle):
    out = shell(bundle.path, shell.table(NEW), "--dry-run")
    assert "would be live, instead of the bundle's own table" in out
    assert "3 items: 2 added, 1 changed, 3 removed" in out
    assert "33.33%" in out
    assert ask(url, lambda store: store.kept()) == []
    assert shell.json(ID, "--list") == []


def test_rollback_ends_at_the_bundles_own(shell, url, bundle):
    one, two = (
        shell.json(bundle.path, shell.table({"id": [10], "price": [price]}))["after"] for price in (1.0, 2.0)
    )
    assert shell.json(ID, "--rollback", "--dry-run") == {"before": two, "after": one}
    assert shell.json(ID, "--rollback", "--by", "bob") == {"before": two, "after": one}
    assert "the bundle's own table is live" in shell(bundle.path, "--rollback")
    assert "no earlier one" in shell.refused(ID, "--rollback")
    steps = shell.json(ID, "--list")
    assert [step["version"] for step in steps] == [None, one, two, one]
    assert steps[1]["run"] == f"rollback of {two}"
    assert steps[1]["by"] == "bob"
    assert "the bundle's own table" in shell(ID, "--list")
    # And from there a new one again.
    assert shell.json(bundle.path, shell.table(NEW))["before"] is None


def test_the_live_table_and_two_before_it_stay(shell, url, bundle):
    made = [
        shell.json(bundle.path, shell.table({"id": [10], "price": [float(price)]}))["after"]
        for price in range(5)
    ]
    kept = ask(url, lambda store: store.kept())
    assert {each.version for each in kept if each.domain == ITEMS} == set(made[2:])
    needed = set()
    for version in made[2:]:
        edition = ask(url, lambda store, version=version: editions.read(store, version))
        needed |= {part for array in edition.arrays.values() for part in array.parts}
    assert {each.version for each in kept if each.domain == ITEM_PARTS} == needed
    assert [step["bytes"] is None for step in shell.json(ID, "--list")] == [False] * 3 + [True] * 2
    for _ in range(2):
        shell(ID, "--rollback")
    assert made[1] in shell.refused(ID, "--rollback")


def test_a_lost_part_is_sent_again(shell, url, bundle):
    shell(bundle.path, shell.table(NEW))
    parts = [each.version for each in ask(url, lambda store: store.kept()) if each.domain == ITEM_PARTS]
    ask(url, lambda store: store.remove([(ITEM_PARTS, parts[0])], 0))
    assert "no version" in shell.refused(bundle.path, shell.table(NEW), "--add")
    assert shell.json(bundle.path, shell.table(NEW))["sent"] > 0
    assert len(live(url, bundle)) == 3


def test_tables_are_no_domains(shell, url, bundle):
    shell(bundle.path, shell.table(NEW))
    assert shell.raw("packs", "list", ID, "--json")[1] == "[]\n"
    before = ask(url, lambda store: store.kept())
    code, out, _ = shell.raw("packs", "gc", ID, "--keep", "0", "--unpromoted", "--json")
    assert (code, out) == (0, "[]\n")
    assert ask(url, lambda store: store.kept()) == before
    assert "not a domain's name" in shell.raw("packs", "promote", ID, f"{ITEMS}=0123456789abcdef")[2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"item.id": [10, 11, 10]}, "item ids repeat: 10"),
        ({"item.id": [10], "colour": ["red"]}, "no item field called colour"),
        ({"item.id": [10], "user.age": [3.0]}, "no item field called user.age"),
        ({"item.id": [10], "price": [1.0], "item.price": [2.0]}, "stands twice"),
        ({"brand": ["acme"]}, "has no item.id"),
        ({"item.id": pl.Series([], dtype=pl.Int64)}, "has no items"),
        ({"item.id": [10, None]}, "1 items have no item.id"),
        ({"item.id": ["a"]}, "item.id"),
        ({"item.id": [1.5]}, "item.id is Float64, but the bundle's item ids are int"),
        ({"item.id": [10], "price": ["much"]}, "column item.price has text where a number belongs"),
        ({"item.id": [10, 11], "brand": ["acme", "zeta"], "price": [1.0, float("inf")]}, "item.price[1]"),
        ({"item.id": [10], "brand": [7]}, "item.brand[0]: expected str, got int"),
        ({"item.id": [10], "tags": [[1]]}, "item.tags[0]: expected str, got int"),
    ],
)
def test_a_file_that_is_no_table_of_items_is_one_line_and_2(shell, url, bundle, columns, said):
    assert said in shell.refused(bundle.path, shell.table(columns))
    assert ask(url, lambda store: store.kept()) == []


def test_what_cannot_be_read_is_one_line_and_2(shell, bundle, tmp_path):
    (tmp_path / "text.txt").write_text("10")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "neither a .parquet nor a .csv" in shell.refused(bundle.path, tmp_path / "text.txt")
    assert "cannot be read" in shell.refused(bundle.path, tmp_path / "bad.parquet")
    assert "cannot be read" in shell.refused(bundle.path, tmp_path / "none.parquet")
    assert "not a bundle" in shell.refused(tmp_path, shell.table(NEW))
    for arguments in ([], ["--list", "--rollback"], ["--add"], ["--add", "--list"]):
        assert "give a file of items" in shell.refused(bundle.path, *arguments)


def test_of_two_publishers_one_is_told(url, bundle):
    async def both(store):
        columns: list[dict[str, Any]] = [{"item.id": [10], "item.price": [price]} for price in (1.0, 2.0)]
        made = [await items.make(store, bundle, each, add=True) for each in columns]
        first = await items.publish(store, bundle, made[0])
        with pytest.raises(Conflict):
            await items.publish(store, bundle, made[1])
        assert (await store.live())[ITEMS] == first.after

    ask(url, both)

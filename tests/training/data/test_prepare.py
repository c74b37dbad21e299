"""Raw rows to a prepared folder: splits, what is dropped, what is fitted, and that it is there whole."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import roc_auc_score

from service.contract.errors import RunError, UnknownOption
from service.contract.field import Field
from service.contract.items import ItemTable
from training.data import prepare as module
from training.data.prepare import SPLITS, Prepared, as_column, columns, domain_name, prepare, show
from training.data.sources._protocol import Interactions

DOMAINS = {"feed": 3_000, "shop": 1_000}
SMALL = {"domains": DOMAINS, "users": 100, "items": 80}
FIELDS = (
    Field(name="id", owner="user", kind="vocabulary", dtype="int"),
    Field(name="genre", owner="item", kind="vocabulary"),
)
ITEMS = pl.DataFrame(
    {"item.id": ["a", "b", "c"], "item.genre": ["jazz", "rock", "folk"], "text": ["A", "B", "C"]}
)


class Options(BaseModel):
    """None."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Made:
    """A source of rows that a test made up."""

    fields = FIELDS

    def __init__(self, frame: pl.DataFrame, items: pl.DataFrame) -> None:
        self.frame, self.table = frame, items

    def interactions(self) -> Interactions:
        return Interactions(self.frame, "made up", {"at the source": 2})

    def items(self) -> pl.DataFrame:
        return self.table


@pytest.fixture
def put(monkeypatch, tmp_path) -> Callable[..., Prepared]:
    """Prepare a frame as if a third party's source `their.source` gave it."""

    def prepared(frame: pl.DataFrame, items: pl.DataFrame = ITEMS) -> Prepared:
        source = ModuleType("their.source")
        source.Options = Options  # type: ignore[attr-defined]
        source.open = lambda options: Made(frame, items)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "their", ModuleType("their"))
        monkeypatch.setitem(sys.modules, "their.source", source)
        return prepare("their.source", {}, tmp_path)

    return prepared


def frame(n: int = 20, /, **extra: Any) -> pl.DataFrame:
    rows = {
        "domain": ["Jazz & Blues" if at % 2 else "Rock" for at in range(n)],
        "label": [at // 2 % 2 for at in range(n)],
        "time": list(range(n)),
        "user.id": [at % 3 for at in range(n)],
        "item.id": ["abc"[at % 3] for at in range(n)],
    }
    return pl.DataFrame(rows | extra).with_columns(pl.col("label").cast(pl.Int8))


def test_without_splits_the_rows_are_split_by_time(put):
    made = put(frame().sample(fraction=1, shuffle=True, seed=0))
    assert [sorted(made.split(name)["time"]) for name in SPLITS] == [list(range(16)), [16, 17], [18, 19]]
    assert made.split("train").columns == [
        "row", "domain", "label", "time", "user.id", "item.id", "item.genre",
    ]  # fmt: skip


def test_rows_of_one_moment_stay_together(put):
    made = put(frame(time=[0] * 15 + [1] * 3 + [2] * 2))
    assert [made.split(name)["time"].unique().to_list() for name in SPLITS] == [[0], [1], [2]]


def test_the_sources_own_split_is_kept(put):
    given = ["test"] * 5 + ["train"] * 10 + ["valid"] * 5
    made = put(frame(split=given))
    assert [made.split(name)["time"].to_list() for name in SPLITS] == [
        list(range(5, 15)), list(range(15, 20)), list(range(5)),
    ]  # fmt: skip
    assert "split" not in made.split("train").columns


def test_unusable_rows_are_dropped_and_counted(put):
    made = put(
        frame(
            label=[None, *([0, 1] * 10)[1:]],
            domain=["Rock", None, *["Rock"] * 18],
            split=["train", "train", "later", None, *["train"] * 10, *["valid"] * 3, *["test"] * 3],
            **{"item.id": ["a"] * 4 + ["z", None] + ["a"] * 14},
        )
    )
    assert made.about.dropped == {
        "at the source": 2, "no label": 1, "no domain": 1, "item not among the items": 2, "unknown split": 2,
    }  # fmt: skip
    assert sum(part.rows for part in made.about.parts["rock"].values()) == 14
    # A row's number is its place in the source, whatever was dropped before it.
    assert made.split("train")["row"].to_list() == list(range(6, 14))


def test_rows_without_a_time_cannot_be_split(put):
    assert put(frame(time=[None, *range(1, 20)])).about.dropped["no time"] == 1


def test_the_schema_knows_only_the_training_rows(put):
    made = put(frame(**{"user.id": [1] * 16 + [2] * 4, "item.id": ["a"] * 8 + ["b"] * 8 + ["c"] * 4}))
    assert made.schema.slots["user.id"].field.values == (1,)
    assert made.schema.slots["item.genre"].field.values == ("jazz", "rock")
    assert made.about.unseen["item.id"].rows == 1
    assert made.about.unseen["user.id"].ids == 1


def test_items_keep_their_text_and_rows_do_not_carry_it(put):
    made = put(frame())
    assert made.items().equals(ITEMS)
    assert "text" not in made.split("train").columns


def test_domains_are_named_and_in_order(put):
    made = put(frame())
    assert made.domains == ("jazz-blues", "rock")
    assert set(made.split("train")["domain"]) == {"jazz-blues", "rock"}
    assert made.about.parts["rock"]["train"].positive == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (frame().drop("user.id"), "interactions lack user.id"),
        (frame().drop("time"), "neither `split` nor `time`"),
        (frame(label=[2] * 20), "labels other than 0 and 1"),
        (frame(domain=["A, B", "a b"] * 10), "names become the same: A, B, a b"),
        (frame(domain=["音乐"] * 20), "has no letter a-z"),
        (frame(time=[5] * 20), "no rows for train"),
        (frame(split=["train"] * 20), "no rows for valid"),
        (frame(0), "no usable rows"),
    ],
)
def test_a_broken_promise_is_named(put, tmp_path, broken, message):
    with pytest.raises(RunError, match=re.escape(message)):
        put(broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ITEMS.drop("item.genre"), "items lack item.genre"),
        (pl.concat([ITEMS, ITEMS]), "an item id is missing, or repeats"),
        (ITEMS.with_columns(pl.lit(None, pl.String).alias("item.id")), "an item id is missing, or repeats"),
    ],
)
def test_broken_items_are_named(put, broken, message):
    with pytest.raises(RunError, match=message):
        put(frame(), broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": "many"}, "source synthetic: users: Input should be a valid integer"),
        ({"domains": {"feed": -1}}, "source synthetic: domains.feed: Input should be greater than"),
        ({"user": 3}, "source synthetic: user: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(tmp_path, options, message):
    with pytest.raises(RunError) as raised:
        prepare("synthetic", options, tmp_path)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(UnknownOption, match="synthetic"):
        prepare("syntetic", {}, tmp_path)


def test_the_folder_says_what_it_holds(tmp_path):
    made = prepare("synthetic", SMALL, tmp_path)
    assert re.fullmatch(r"synthetic-[0-9a-f]{8}", made.path.name)
    assert sorted(path.name for path in made.path.iterdir()) == [
        "data.json", "items.parquet", "schema.json", "test.parquet", "train.parquet", "valid.parquet",
    ]  # fmt: skip
    about = json.loads((made.path / "data.json").read_text())
    assert about["source"] == "synthetic"
    assert about["options"]["users"] == 100
    assert about["options"]["domain_share"] == 0.3
    assert about["checksum"] is None
    numbers = pl.concat([made.split(name)["row"] for name in SPLITS])
    assert numbers.is_unique().all()
    assert numbers.dtype == pl.Int64
    assert [made.split(name).height for name in SPLITS] == [3_200, 400, 400]


def test_the_oracles_auc_is_sklearns(tmp_path):
    made = prepare("synthetic", SMALL, tmp_path)
    for (domain,), rows in made.split("test").group_by("domain"):
        expected = roc_auc_score(rows["label"], rows["probability"])
        assert made.about.oracle_auc[str(domain)] == pytest.approx(expected)


def test_the_oracles_auc_counts_ties_by_half_and_needs_both_labels(put):
    # By hand: clicks at .5 and .9, none at .5 and .1 -> pairs .5>.1, .9>.5, .9>.1 and one tie: 3.5 of 4.
    ends = frame(40, label=[0, 1] * 18 + [0, 1, 0, 1], probability=[0.5] * 36 + [0.1, 0.5, 0.5, 0.9])
    assert put(ends.with_columns(domain=pl.lit("one"))).about.oracle_auc == {"one": 3.5 / 4}
    alone = ends.with_columns(domain=pl.Series(["one"] * 36 + ["two"] * 4), label=pl.lit(1, pl.Int8))
    assert put(alone.with_columns(time=pl.Series(range(100, 140)))).about.oracle_auc == {"one": 3.5 / 4}


def test_a_folder_that_is_there_is_reused(tmp_path, monkeypatch):
    first = prepare("synthetic", SMALL, tmp_path)
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("written again"))
    assert prepare("synthetic", SMALL, tmp_path).about == first.about
    turned = {**SMALL, "domains": dict(reversed(DOMAINS.items()))}
    assert prepare("synthetic", turned, tmp_path).path == first.path


def test_other_options_are_another_folder(tmp_path):
    one, two = (prepare("synthetic", SMALL | {"seed": seed}, tmp_path) for seed in (0, 1))
    assert one.path != two.path


def test_the_same_options_give_the_same_bytes(tmp_path):
    one, two = (prepare("synthetic", SMALL, tmp_path / name).path for name in ("one", "two"))
    assert one.name == two.name
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_what_is_no_prepared_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a folder of prepared data"):
        Prepared.open(tmp_path)
    (tmp_path / "data.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match=r"data\.json: format: "):
        Prepared.open(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
import polars as pl
from training.data.prepare import prepare

write = pl.DataFrame.write_parquet
def dying(frame, file):
    if file.name == "test.parquet":
        file.write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
    write(frame, file)
pl.DataFrame.write_parquet = dying
prepare("synthetic", {"domains": {"feed": 3000, "shop": 1000}, "users": 100, "items": 80}, Path(sys.argv[1]))
"""


def test_a_killed_run_leaves_nothing_under_the_final_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=Path(module.__file__).parents[2],
        env=os.environ,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".synthetic-")
    made = prepare("synthetic", SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == [made.path]
    assert made.split("test").height == 400


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Cooking, Food & Wine", "cooking-food-wine"),
        ("music", "music"),
        ("Café  Été", "cafe-ete"),
        ("v1.2_beta", "v1.2_beta"),
        ("--x--", "x"),
        ("18-24", "18-24"),
        ("a" * 80, "a" * 64),
    ],
)
def test_domain_names(raw, name):
    assert domain_name(raw) == name


@given(st.text())
def test_a_domain_name_is_valid_stays_itself_or_is_refused(raw):
    try:
        name = domain_name(raw)
    except RunError:
        return
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name)
    assert domain_name(name) == name


def test_columns_are_what_encoding_takes(tmp_path):
    made = prepare("synthetic", SMALL, tmp_path)
    rows = made.split("train")
    request, item = (columns(rows, made.schema, scope) for scope in ("request", "item"))
    assert isinstance(request["context.hour"], np.ndarray)
    assert isinstance(item["item.price"], np.ndarray)
    assert isinstance(request["user.gender"], list)
    assert {len(tags) for tags in item["item.tags"]} == {0, 1, 2, 3}
    hour = made.schema.slots["context.hour"]
    encoded = made.schema.encode("request", request, rows.height)
    first = encoded.ids[:, hour.at].ravel() - hour.offset - 1
    assert (np.asarray(hour.field.values)[first] == rows["context.hour"].to_numpy()).all()


@pytest.mark.parametrize("dtype", [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float32, 2)])
def test_vectors_become_an_array_where_all_are_equally_long_and_whole(dtype):
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    whole = as_column(pl.Series(rows, dtype=dtype))
    assert isinstance(whole, np.ndarray)
    assert whole.tolist() == rows
    others: list[list[list[float | None] | None]] = [[[1.0, 2.0], None], [[1.0, None]], []]
    if not isinstance(dtype, pl.Array):
        others += [[[1.0], [2.0, 3.0, 4.0]], [[]]]
    for other in others:
        assert as_column(pl.Series(other, dtype=dtype)) == other


def test_numbers_with_gaps_become_lists_and_unread_item_ids_come_along(put):
    schema = put(frame(**{"user.id": [None, *range(19)]})).schema
    assert columns(frame(3, **{"user.id": [1, None, 2]}), schema, "request") == {"user.id": [1, None, 2]}
    table = ItemTable.encode(schema, columns(ITEMS, schema, "item"))
    assert table.keys.tolist() == ["a", "b", "c"]


def test_the_table_goes_to_stderr(put, capsys):
    show(
        put(
            frame(
                label=[0, 0, 1, 1] * 5,
                probability=[0.1, 0.2, 0.8, 0.9] * 5,
                split=["train"] * 8 + ["valid"] * 4 + ["test"] * 8,
            )
        )
    )
    out, err = capsys.readouterr()
    assert out == ""
    for expected in ("jazz-blues", "rock", "made up", "dropped 2 rows: at the source", "oracle AUC"):
        assert expected in err

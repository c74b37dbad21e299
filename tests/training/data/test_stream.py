"""Rows that come in parts: prepared, fitted and encoded as all at once, and streamed in a seed's order."""

from __future__ import annotations

import json
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import Progress

from service.contract.errors import RunError
from service.contract.field import Field, FieldError
from service.contract.schema import FeatureSchema
from tests.conftest import TINY, Trained, train
from tests.killing import train_and_kill
from training import checkpoint
from training.checkpoint import Run
from training.data import blocks
from training.data.batches import Rows
from training.data.blocks import Blocks, Pieces
from training.data.prepare import SPLITS, Prepared, as_column, prepare
from training.data.sources import synthetic
from training.data.sources._protocol import Interactions
from training.data.stream import BUFFER, Batches, Stream, after
from training.data.tally import Tally, codes
from training.fit import Fit
from training.metrics import auc
from training.recipe import Recipe

DATA: dict[str, Any] = {**TINY["data"], "part": 700}
OPTIONS: dict[str, Any] = {name: value for name, value in DATA.items() if name != "name"}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few rows are many blocks, and a buffer holds a part of them."""
    monkeypatch.setattr(blocks, "BLOCK", 128)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare("synthetic", {**OPTIONS, "seed": 5}, tmp_path)


def opened(prepared: Prepared) -> Stream:
    assert prepared.blocks is not None
    return Stream.open(prepared.blocks)


def keys(rows: Rows) -> list[bytes]:
    """Something for each row that tells it from the others, as far as it differs from them."""
    columns = (*rows.arrays, rows.domain[:, None], rows.label[:, None])
    table = torch.cat([column.double() for column in columns], 1).numpy()
    return [row.tobytes() for row in table]


def same(one: Rows, two: Rows) -> bool:
    return keys(one) == keys(two)


# --- prepared in parts ----------------------------------------------------------------------------------


def test_in_parts_the_folder_is_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = prepare("synthetic", OPTIONS, tmp_path / "parts")
    assert streamed.blocks is not None

    class AtOnce(synthetic.Synthetic):
        """All parts as one."""

        def interactions(self) -> Interactions:
            options = synthetic.Options.model_validate(OPTIONS)
            return synthetic.Parted(options, 700).interactions()

    monkeypatch.setattr(synthetic, "open", AtOnce)
    whole = prepare("synthetic", OPTIONS, tmp_path / "whole")
    assert whole.blocks is None
    for split in SPLITS:
        assert streamed.split(split).equals(whole.split(split)), split
    assert streamed.about == whole.about
    for one, two in zip(streamed.schema.fields, whole.schema.fields, strict=True):
        assert one.values == two.values
        assert (one.mean, one.std) == pytest.approx((two.mean, two.std), rel=1e-12)


def test_blocks_hold_the_training_rows_as_they_are_encoded(prepared: Prepared) -> None:
    stream, rows = opened(prepared), Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
    assert len(stream) == len(rows)
    assert len(stream.groups) > 2 * BUFFER
    assert stream.counts(3) == rows.counts(3)
    assert sorted(keys(stream.load())) == sorted(keys(rows))
    loaded = stream.load()
    for name in ("request_ids", "item_numbers", "domain", "label"):
        assert getattr(loaded, name).dtype == getattr(rows, name).dtype, name


class Parted:
    """A source of parts that a test made up."""

    fields = (
        Field(name="id", owner="user", kind="vocabulary", dtype="int", min_count=2),
        Field(name="age", owner="user", kind="number"),
        Field(name="seen", owner="user", kind="vocabulary", multiple=2),
        Field(name="place", owner="context", kind="hashed", buckets=8),
        Field(name="genre", owner="item", kind="vocabulary"),
    )

    def __init__(self, *frames: pl.DataFrame) -> None:
        self.frames = frames

    def parts(self) -> Iterator[Interactions]:
        for frame in self.frames:
            yield Interactions(frame, "made up", {"at the source": 1})

    def interactions(self) -> Interactions:
        return Interactions(pl.concat(self.frames), "made up", {"at the source": len(self.frames)})

    def items(self) -> pl.DataFrame:
        return pl.DataFrame({"item.id": ["a", "b"], "item.genre": ["jazz", "rock"]})


def part(n: int = 12, /, **changed: Any) -> pl.DataFrame:
    rows: dict[str, Any] = {
        "domain": ["Rock", "Jazz"] * (n // 2),
        "label": [0, 1, 1] * (n // 3),
        "split": (["train"] * (n - 4) + ["valid", "valid", "test", "test"]),
        "user.id": [at % 5 for at in range(n)],
        "user.age": [None if at % 4 == 3 else at / 2 for at in range(n)],
        "user.seen": [None if at % 3 == 0 else [str(at % 4), "x", "y"][: at % 4] for at in range(n)],
        "context.place": [None if at % 5 == 4 else f"p{at % 6}" for at in range(n)],
        "item.id": ["a", "b", "a"] * (n // 3),
    }
    return pl.DataFrame(rows | changed).with_columns(pl.col("label").cast(pl.Int8))


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def prepared(*frames: pl.DataFrame) -> Prepared:
        source: Any = ModuleType("their.source")
        source.Options = synthetic.Options
        source.open = lambda options: Parted(*frames)
        monkeypatch.setitem(sys.modules, "their", ModuleType("their"))
        monkeypatch.setitem(sys.modules, "their.source", source)
        return prepare("their.source", {}, tmp_path)

    return prepared


def test_missing_values_lists_and_numbers_are_encoded_as_in_memory(put: Any) -> None:
    made = put(part(), part(24), part(6))
    rows = Rows.encode(made.split("train"), made.schema, made.domains)
    streamed = opened(made)
    for at in range(2):
        assert same(streamed.of(at), rows.of(at))  # type: ignore[arg-type]
    assert made.about.dropped == {"at the source": 3}
    assert made.split("train")["row"].to_list() == [*range(8), *range(12, 32), *range(36, 38)]
    assert made.schema.slots["user.id"].field.values == (0, 1, 2, 3, 4)


def test_what_parts_may_not_be_is_said_in_a_line(put: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="come in parts, so each row needs its `split`"):
        put(part().drop("split"))
    with pytest.raises(RunError, match="no rows for valid"):
        put(part(split=["train"] * 10 + ["test"] * 2))
    with pytest.raises(RunError, match=r"not have the columns of the parts before it: .*user\.age"):
        put(part(), part(**{"user.age": ["old"] * 12}))
    with pytest.raises(FieldError, match="expected str, got int"):
        put(part(**{"context.place": [1] * 12}))
    with pytest.raises(RunError, match="names become the same: Jazz, Rock, rock"):
        put(part(), part(domain=["rock"] * 12))
    assert not list(tmp_path.iterdir()), "a folder that is not whole stayed"


values = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "é", ""]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(values, st.lists(values, max_size=3), st.none() | st.floats(-1e6, 1e6))),
        max_size=4,
    ),
    st.integers(1, 3),
)
def test_a_schema_is_the_same_however_rows_are_parted(parts: list[Any], least: int) -> None:
    fields = (
        Field(name="a", owner="user", kind="vocabulary", min_count=least),
        Field(name="b", owner="item", kind="vocabulary", multiple=2, min_count=least),
        Field(name="c", owner="user", kind="number"),
    )
    types: dict[str, Any] = {"user.a": pl.String, "item.b": pl.List(pl.String), "user.c": pl.Float64}
    frames = [pl.DataFrame(rows, schema=types, orient="row") for rows in parts]
    tally = Tally(fields)
    for frame in frames:
        tally.add(frame)
    everything = pl.concat([pl.DataFrame(schema=types), *frames])
    whole = FeatureSchema.fit(fields, {key: as_column(everything[key]) for key in types})
    for one, two in zip(tally.schema().fields, whole.fields, strict=True):
        assert one.values == two.values
        assert (one.mean, one.std) == pytest.approx((two.mean, two.std), rel=1e-9, abs=1e-9)


def test_codes_tell_values_and_nulls_apart() -> None:
    found, at = codes(pl.Series(["b", None, "a", "b", None]))
    assert found.to_list() == ["b", None, "a"]
    assert at.tolist() == [0, 1, 2, 0, 1]


def test_a_folder_without_blocks_or_with_a_short_file_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no encoded rows"):
        Blocks.open(tmp_path)
    stream = opened(prepared)
    file = stream.blocks.folder / "label.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="shorter than its header says"):
        stream.load()


# --- streamed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 128, 1000, 1024, 1500, 10_000])
def test_an_epoch_has_every_row_once_and_full_batches(prepared: Prepared, size: int) -> None:
    stream = opened(prepared)
    batches = list(stream.shuffled(3).batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (
        len(stream) // size - (len(stream) % size == 0)
    )
    assert sum(map(len, batches)) == len(stream)
    assert sorted(key for batch in batches for key in keys(batch)) == sorted(keys(stream.load()))


def test_the_order_is_the_seeds(prepared: Prepared) -> None:
    stream = opened(prepared)
    one, again, other = (list(stream.shuffled(seed).batches(300)) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert not any(same(a, b) for a, b in zip(one, other, strict=True))
    # Mixed: a batch has rows of the first and of the last days, and of all domains.
    assert all(len(batch.domain.unique()) == 3 for batch in one)


def test_batches_after_some_are_those_and_no_earlier_buffer_is_read(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, original, read = opened(prepared), Blocks.read, list[Pieces]()

    def noted(self: Blocks, pieces: Pieces) -> Rows:
        read.append(pieces)
        return original(self, pieces)

    monkeypatch.setattr(Blocks, "read", noted)
    for size in (64, 300, 1100):
        whole = list(stream.shuffled(4).batches(size))
        for steps in (0, 1, len(whole) // 2, len(whole) - 1, len(whole), len(whole) + 1):
            read.clear()
            rest = list(after(stream.shuffled(4).batches(size), steps))
            assert len(rest) == max(len(whole) - steps, 0)
            assert all(same(a, b) for a, b in zip(rest, whole[steps:], strict=True))
            rows = len(stream) - steps * size
            assert len(read) <= -(-max(rows, 0) // (BUFFER * 128)) + 1
    read.clear()
    assert isinstance(stream.shuffled(4).batches(64), Batches)
    assert not read


def test_no_more_than_three_buffers_are_held(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was read or shuffled, counted by the arrays that live: views keep theirs alive."""
    held, most, lock = 0, 0, threading.Lock()

    def count(rows: Rows) -> Rows:
        nonlocal held, most
        array = rows.label.numpy()
        counted = Rows(*rows.arrays, rows.domain, torch.from_numpy(array))

        def gone(blocks_held: int) -> None:
            nonlocal held
            with lock:
                held -= blocks_held

        n = -(-len(rows) // 128)
        with lock:
            held += n
            most = max(most, held)
        weakref.finalize(array, gone, n)
        return counted

    read, shuffled = Blocks.read, Rows.shuffled
    monkeypatch.setattr(Blocks, "read", lambda self, pieces: count(read(self, pieces)))
    monkeypatch.setattr(Rows, "shuffled", lambda self, seed: count(shuffled(self, seed)))
    stream = opened(prepared)
    for size in (50, 64, 1500):
        for batch in stream.shuffled(0).batches(size):
            time.sleep(1e-4)  # so that the thread has read as far as it will
            assert len(batch) <= size
        del batch
    assert 2 * BUFFER <= most <= 3 * BUFFER
    assert len(stream) > 3.5 * BUFFER * 128


def test_a_small_domain_is_loaded_and_a_large_one_streamed(prepared: Prepared) -> None:
    stream = opened(prepared)
    rows = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
    big, mid, small = (stream.of(at) for at in range(3))
    assert isinstance(big, Stream)
    assert isinstance(mid, Rows)
    assert isinstance(small, Rows)
    assert same(mid, rows.of(1))
    assert same(small, rows.of(2))
    assert len(big) == len(rows.of(0))
    assert all(sum(b - a for a, b in group) <= 128 for group in big.groups)
    assert same(big.load(), rows.of(0))
    seen = [key for batch in big.to(torch.device("cpu")).shuffled(1).batches(100) for key in keys(batch)]
    assert sorted(seen) == sorted(keys(rows.of(0)))


# --- trained --------------------------------------------------------------------------------------------

STREAMED: dict[str, Any] = {"data": DATA}


@pytest.fixture
def streamed(tmp_path: Path) -> Trained:
    return train(tmp_path / "streamed", tmp_path / "data", **STREAMED)


def bits(model: Any) -> list[torch.Tensor]:
    packs = [model.pack(domain) for domain in model.domains]
    return [*model.paradigm.state_dict().values(), *(tensor for pack in packs for tensor in pack.values())]


# With a state saved after each step: 5 is within the first epoch's second buffer, 32 in a later epoch, 50 in
# the tuning of the first domain, which is streamed.
@pytest.mark.parametrize("saved", [5, 32, 50])
def test_a_killed_run_goes_on_to_the_same_bits(saved: int, streamed: Trained, tmp_path: Path) -> None:
    assert streamed.prepared.blocks is not None
    train_and_kill(tmp_path / "run", streamed.data, saved, STREAMED)
    assert (tmp_path / "run" / "state.pt").exists()
    resumed = train(tmp_path / "run", streamed.data, **STREAMED)
    assert all(torch.equal(a, b) for a, b in zip(bits(streamed.model), bits(resumed.model), strict=True))


def test_streamed_rows_teach_as_much_as_rows_in_memory(tmp_path: Path) -> None:
    """Of four seeds' macro AUC, the mean gap is within two standard errors, or 0.003."""
    options = {**OPTIONS, "domains": {"a": 12_000, "b": 8_000}, "domain_share": 0.0, "part": 5_000}
    prepared = prepare("synthetic", options, tmp_path / "data")
    stream = opened(prepared)
    test = Rows.encode(prepared.split("test"), prepared.schema, prepared.domains)
    found: dict[str, list[float]] = {"memory": [], "stream": []}
    for seed in range(4):
        changed = {"seed": seed, "data": DATA | options, "paradigm": {"name": "mix"}, "joint": {"epochs": 2}}
        recipe = Recipe.model_validate({**TINY, **changed})
        for name, rows in (("memory", stream.load()), ("stream", stream)):
            run = Run(tmp_path / f"{name}-{seed}", recipe, prepared)
            with Progress(disable=True) as bars:
                model = Fit(recipe, prepared, run, bars, rows).train()
            aucs = [
                auc(model.logits(test.of(at), name_of).numpy(), test.of(at).label.numpy())
                for at, name_of in enumerate(prepared.domains)
            ]
            found[name].append(float(np.mean(aucs)))
    gap = np.array(found["stream"]) - np.array(found["memory"])
    assert min(found["memory"]) > 0.6
    assert abs(gap.mean()) < max(2 * gap.std(ddof=1) / np.sqrt(len(gap)), 0.003)


def test_a_run_on_a_stream_is_complete(streamed: Trained) -> None:
    recipe, prepared, model, metrics = checkpoint.load(streamed.folder, streamed.data)
    assert (recipe, prepared.path) == (streamed.recipe, streamed.prepared.path)
    assert model.tuned.keys() == set(prepared.domains)
    assert metrics["macro"]["pack"]["auc"] > 0.55
    lines = [json.loads(line) for line in (streamed.folder / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"joint", "tuning/big", "tuning/mid", "tuning/small"}


def test_recipes_that_want_all_rows_in_memory_are_refused(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**TINY, **STREAMED, "grades": {}, "align": {}})
    prepared = prepare("synthetic", OPTIONS, tmp_path / "data")
    with Progress(disable=True) as bars:
        fit = Fit(recipe, prepared, Run(tmp_path / "run", recipe, prepared), bars)
        with pytest.raises(RunError, match="wants all of them in memory: align, grades"):
            fit.train()
        graded = Recipe.model_validate({**TINY, **STREAMED, "grades": {}})
        run = Run(tmp_path / "graded", graded, prepared)
        given = Fit(graded, prepared, run, bars, opened(prepared))
        with pytest.raises(RunError, match="they are streamed"):
            given.grades  # noqa: B018 - it is computed when it is asked for

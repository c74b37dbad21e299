"""Douban's two protocols, on a made-up copy, and on the real one where `MDCTR_DATA_DIR` names it."""

import os
from pathlib import Path

import polars as pl
import pytest

from service.contract import hashing
from service.contract.errors import RunError
from training.data.prepare import prepare
from training.data.sources import douban

real = pytest.mark.skipif(
    not os.environ.get("MDCTR_DATA_DIR"), reason="MDCTR_DATA_DIR, the folder of real data, is not set"
)


def rows(domain: str, split: str, n: int, first_item: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": pl.Series([at % 7 for at in range(n)], dtype=pl.Int16),
            "item_id": pl.Series([first_item + at % 5 for at in range(n)], dtype=pl.Int32),
            "domain": [domain] * n,
            "label": pl.Series([at % 2 for at in range(n)], dtype=pl.Int8),
            "rating": pl.Series([5 if at % 2 else 1 for at in range(n)], dtype=pl.Int8),
            "split": [split] * n,
        }
    )


def publish(root: Path, *parts: pl.DataFrame) -> Path:
    folder = root / "douban"
    folder.mkdir()
    pl.concat(parts).write_parquet(folder / "interactions.parquet")
    digest = hashing.file(folder / "interactions.parquet")
    (root / "SHA256SUMS").write_text(f"{digest}  douban/interactions.parquet\n")
    return folder


SOME = [
    rows("music", "train", 20, 0),
    rows("music", "val", 5, 0),
    rows("music", "test", 6, 0),
    rows("book", "train", 30, 10),
    rows("book", "val", 4, 10),
    rows("book", "test", 3, 10),
    rows("movie", "val", 50, 20),
    rows("movie", "test", 40, 20),
]
MOVIE_TRAIN = rows("movie", "train", 70, 20)


def source(folder: Path | None, **options: object) -> douban.Douban:
    return douban.open(douban.Options.model_validate({"folder": folder, **options}))


def counts(frame: pl.DataFrame) -> dict[tuple[str, str], int]:
    return {(domain, split): n for domain, split, n in frame.group_by("domain", "split").len().iter_rows()}


MUSIC_AND_BOOK = {
    ("music", "train"): 20, ("music", "valid"): 5, ("music", "test"): 6,
    ("book", "train"): 30, ("book", "valid"): 4, ("book", "test"): 3,
}  # fmt: skip


def test_reduced_trains_movie_on_its_validation_split_but_for_a_tenth(tmp_path):
    given = source(publish(tmp_path, *SOME)).interactions()
    movie = {("movie", "train"): 45, ("movie", "valid"): 5, ("movie", "test"): 40}
    assert counts(given.frame) == MUSIC_AND_BOOK | movie
    assert given.dropped == {}
    assert "seed 0" in given.protocol


def test_reduced_is_the_same_beside_the_full_data(tmp_path):
    (tmp_path / "full").mkdir()
    few = source(publish(tmp_path, *SOME)).interactions()
    full = source(publish(tmp_path / "full", *SOME, MOVIE_TRAIN)).interactions()
    assert full.frame.equals(few.frame)
    assert full.dropped == {"movie's training split, not in the reduced protocol": 70}


def test_the_seed_chooses_the_validation_rows(tmp_path):
    folder = publish(tmp_path, *SOME)
    assert source(folder).interactions().frame.equals(source(folder).interactions().frame)
    assert not source(folder).interactions().frame.equals(source(folder, seed=1).interactions().frame)


def test_the_papers_protocol_takes_the_splits_as_they_are(tmp_path):
    given = source(publish(tmp_path, *SOME, MOVIE_TRAIN), protocol="paper").interactions()
    movie = {("movie", "train"): 70, ("movie", "valid"): 50, ("movie", "test"): 40}
    assert counts(given.frame) == MUSIC_AND_BOOK | movie
    assert given.dropped == {}


def test_the_papers_protocol_without_its_rows_is_refused(tmp_path):
    with pytest.raises(RunError, match="needs movie's training split, which this copy"):
        source(publish(tmp_path, *SOME), protocol="paper").interactions()


def test_the_rating_never_leaves(tmp_path):
    folder = publish(tmp_path, *SOME)
    some = source(folder)
    assert set(some.interactions().frame.columns) == {"domain", "label", "user.id", "item.id", "split"}
    assert some.items().columns == ["item.id"]
    made = prepare("douban", {"folder": folder}, tmp_path / "runs")
    for name in ("train", "valid", "test"):
        assert not [column for column in made.split(name).columns if "rating" in column]


def test_a_changed_file_is_refused(tmp_path):
    folder = publish(tmp_path, *SOME)
    pl.concat(SOME[1:]).write_parquet(folder / "interactions.parquet")
    with pytest.raises(RunError, match="has checksum"):
        source(folder).interactions()
    with pytest.raises(RunError, match="has checksum"):
        prepare("douban", {"folder": folder}, tmp_path / "runs")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    folder = publish(tmp_path, *SOME)
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("douban", "another"))
    with pytest.raises(RunError, match="does not list douban/interactions"):
        source(folder).interactions()
    sums.unlink()
    with pytest.raises(RunError, match="SHA256SUMS, to check the data against, is not there"):
        source(folder).interactions()
    with pytest.raises(RunError, match=r"nowhere/interactions\.parquet is not there"):
        source(tmp_path / "nowhere").items()
    monkeypatch.delenv("MDCTR_DATA_DIR", raising=False)
    with pytest.raises(RunError, match="set MDCTR_DATA_DIR"):
        source(None).interactions()


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    publish(tmp_path, *SOME)
    monkeypatch.setenv("MDCTR_DATA_DIR", str(tmp_path))
    assert source(None).interactions().frame.height == 158


def test_prepared_data_is_known_by_its_checksum_not_by_its_place(tmp_path):
    (tmp_path / "copy").mkdir()
    here = prepare("douban", {"folder": publish(tmp_path, *SOME)}, tmp_path / "runs")
    there = prepare("douban", {"folder": publish(tmp_path / "copy", *SOME)}, tmp_path / "runs")
    assert here.path == there.path
    assert str(tmp_path) not in (here.path / "data.json").read_text()


@real
def test_the_real_data_in_the_reduced_protocol(tmp_path):
    made = prepare("douban", {}, tmp_path)
    sizes = {
        domain: tuple(made.about.parts[domain][split].rows for split in ("train", "valid", "test"))
        for domain in made.domains
    }
    # Of PLATE's files: 113,342 rows of movie are its validation split, of which a tenth stays that.
    assert sizes == {
        "book": (76_832, 9_604, 9_605),
        "movie": (102_008, 11_334, 113_342),
        "music": (55_767, 6_970, 6_972),
    }
    assert made.items().height == 21_887
    assert made.about.dropped == {}


@real
def test_a_rating_above_three_is_the_label_and_films_have_none(tmp_path):
    plain, graded = prepare("douban", {}, tmp_path), prepare("douban", {"grades": True}, tmp_path)
    for split in ("train", "valid", "test"):
        with_grade, without = graded.split(split), plain.split(split)
        assert with_grade.drop("grade").equals(without)
        known = with_grade.filter(pl.col("grade").is_not_null())
        assert set(known["domain"]) == {"book", "music"}
        assert ((known["grade"] > 3) == (known["label"] == 1)).all()
    assert prepare("douban", {"grades": False}, tmp_path).path == plain.path


@real
def test_the_real_data_has_no_rows_for_the_papers_protocol():
    given = pl.read_parquet(Path(os.environ["MDCTR_DATA_DIR"]) / "douban" / "interactions.parquet")
    if given.filter((pl.col("domain") == "movie") & (pl.col("split") == "train")).height:
        pytest.skip("this copy of the data has movie's training split")
    with pytest.raises(RunError, match="needs movie's training split"):
        source(None, protocol="paper").interactions()

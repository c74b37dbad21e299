"""MovieLens' protocol, on a made-up copy, and on the real one where `MDCTR_DATA_DIR` names it."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from service.contract import hashing
from service.contract.errors import RunError
from training.data.prepare import prepare
from training.data.sources import movielens_1m

real = pytest.mark.skipif(
    not os.environ.get("MDCTR_DATA_DIR"), reason="MDCTR_DATA_DIR, the folder of real data, is not set"
)
USERS, ITEMS, SEEN = 30, 60, 20
GENRES = ("Comedy", "Animation|Children's|Comedy", "Film-Noir", "War|Drama", "Crime|Thriller", "Sci-Fi")


def publish(root: Path) -> Path:
    """Every user rates 20 of 60 films."""
    folder = root / "movielens_1m"
    folder.mkdir()
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(1, USERS + 1), SEEN)
    item = np.concatenate([random.permutation(ITEMS)[:SEEN] + 1 for _ in range(USERS)])
    rating = random.integers(1, 6, len(user))
    age = np.array([1, 18, 25, 35, 45, 50, 56])[(user - 1) % 7]
    frames = {
        "interactions": pl.DataFrame({"user_id": user, "item_id": item}).with_columns(
            pl.col("user_id", "item_id").cast(pl.Int16),
            domain=pl.Series(
                ["age_under_25" if a < 25 else "age_35_plus" if a > 25 else "age_25_34" for a in age]
            ),
            label=pl.Series(rating > 3).cast(pl.Int8),
            rating=pl.Series(rating).cast(pl.Int8),
        ),
        "items": pl.DataFrame(
            {
                "item_id": pl.Series(range(1, ITEMS + 1), dtype=pl.Int16),
                "item_title": [f"Film {at}, The ({1940 + at})" for at in range(ITEMS)],
                "genres": [GENRES[at % len(GENRES)] for at in range(ITEMS)],
            }
        ),
        "users": pl.DataFrame(
            {
                "user_id": pl.Series(range(1, USERS + 1), dtype=pl.Int16),
                "gender": ["F", "M"] * (USERS // 2),
                "age": pl.Series(
                    [(1, 18, 25, 35, 45, 50, 56)[at % 7] for at in range(USERS)], dtype=pl.Int16
                ),
                "occupation": pl.Series([at % 21 for at in range(USERS)], dtype=pl.Int16),
                "zip_code": [f"{at % 10}1234-5" for at in range(USERS)],
            }
        ),
    }
    sums = []
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
        sums.append(f"{hashing.file(folder / f'{name}.parquet')}  movielens_1m/{name}.parquet\n")
    (root / "SHA256SUMS").write_text("".join(sums))
    return folder


def source(folder: Path | None, **options: object) -> movielens_1m.MovieLens:
    return movielens_1m.open(movielens_1m.Options.model_validate({"folder": folder, **options}))


WHOLE = {"thin": (), "new_items": 0.0}


def sizes(frame: pl.DataFrame, *by: str) -> dict[object, int]:
    return {key if len(by) > 1 else key[0]: rows.height for key, rows in frame.group_by(*by)}


def test_a_domain_is_the_first_genre_and_rare_ones_are_grouped(tmp_path):
    frame = source(publish(tmp_path), **WHOLE).interactions().frame
    domains = ["comedy", "family", "crime", "other", "crime", "adventure"]
    assert (frame["domain"] == pl.Series([domains[(item - 1) % 6] for item in frame["item.id"]])).all()


def test_the_other_cut_is_the_published_column(tmp_path):
    folder = publish(tmp_path)
    given = source(folder, cut="age").interactions()
    published = pl.read_parquet(folder / "interactions.parquet")
    assert (given.frame["domain"] == published["domain"]).all()
    assert given.dropped == {}
    assert given.frame["label"].equals(published["label"])


def test_each_users_rows_are_split(tmp_path):
    frame = source(publish(tmp_path), **WHOLE).interactions().frame
    assert sizes(frame, "user.id", "split") == {
        (user, split): n
        for user in range(1, USERS + 1)
        for split, n in (("train", SEEN - 4), ("valid", 2), ("test", 2))
    }


def test_new_items_have_no_training_row(tmp_path):
    folder = publish(tmp_path)
    whole = source(folder, **WHOLE).interactions().frame
    given = source(folder, thin=(), new_items=0.1).interactions()
    lost = {*whole.filter(pl.col("split") == "train")["item.id"]} - {
        *given.frame.filter(pl.col("split") == "train")["item.id"]
    }
    assert len(lost) == ITEMS // 10
    assert given.dropped == {"training rows of new items": whole.height - given.frame.height}
    for split in ("valid", "test"):
        assert given.frame.filter(split=split)["item.id"].equals(whole.filter(split=split)["item.id"])
    assert not {item for items in given.frame["user.history"] for item in items} & lost


def test_thin_domains_lose_training_rows_alone(tmp_path):
    folder = publish(tmp_path)
    whole = sizes(source(folder, **WHOLE).interactions().frame, "domain", "split")
    given = source(folder, thin=("crime", "family"), thin_rows=5, new_items=0).interactions()
    thin = {(domain, "train"): 5 for domain in ("crime", "family")}
    assert sizes(given.frame, "domain", "split") == whole | thin
    assert given.dropped == {
        f"training rows of {domain}, thinned": whole[domain, "train"] - 5 for domain in ("crime", "family")
    }


def test_a_sample_shrinks_all_splits_alike(tmp_path):
    folder = publish(tmp_path)
    whole = sizes(source(folder, **WHOLE).interactions().frame, "split")
    given = source(folder, **WHOLE, rows=whole["train"] // 4).interactions()
    assert sizes(given.frame, "split") == {split: n // 4 for split, n in whole.items()}
    assert source(folder, **WHOLE, rows=10**6).interactions().dropped == {}


@pytest.mark.parametrize("most", [3, 50])
def test_a_history_is_of_the_users_training_positives_but_for_the_rows_own(tmp_path, most):
    frame = source(publish(tmp_path), history=most).interactions().frame
    liked = frame.filter((pl.col("split") == "train") & (pl.col("label") == 1))
    of = {user: set(rows["item.id"]) for (user,), rows in liked.group_by("user.id")}
    for user, item, history in frame.select("user.id", "item.id", "user.history").iter_rows():
        positives = of.get(user, set())
        assert set(history) <= positives - {item}
        # Were it longer where the own item is not left out, its length would give the label away.
        assert len(history) == len(set(history)) == min(most, max(len(positives) - 1, 0))


def test_profiles_genres_and_years_are_readable(tmp_path):
    some = source(publish(tmp_path))
    first = some.interactions().frame.filter(pl.col("user.id") == 1)
    profile = first.select("user.gender", "user.age", "user.occupation", "user.zip").unique()
    assert profile.rows() == [("F", "under 18", "other", "0")]
    assert some.items().rows(named=True)[1] == {
        "item.id": 2,
        "item.genres": ["Animation", "Children's", "Comedy"],
        "item.year": 1941,
        "name": "Film 1, The (1941)",
        "text": "Film 1, The (1941), a film of the genres Animation, Children's, Comedy",
    }


def test_the_rating_never_leaves_and_no_history_is_no_field(tmp_path):
    some = source(publish(tmp_path), history=0)
    columns = [*some.interactions().frame.columns, *some.items().columns]
    assert "rating" not in columns
    assert "user.history" not in columns
    assert "user.history" not in [field.key for field in some.fields]


def test_another_seed_is_another_split(tmp_path):
    folder = publish(tmp_path)
    one, two = (source(folder, **WHOLE, seed=seed).interactions().frame["split"] for seed in (0, 1))
    assert not one.equals(two)


@pytest.mark.parametrize(
    "wrong", [{"thin": ("age_25_34",)}, {"cut": "age", "thin": ("comedy",)}, {"rows": 0}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        movielens_1m.Options.model_validate(wrong)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    folder = publish(tmp_path)
    (folder / "users.parquet").unlink()
    with pytest.raises(RunError, match=r"movielens_1m: .*users\.parquet is not there"):
        source(folder).items()


@real
def test_the_real_data_by_genre(tmp_path):
    made = prepare("movielens_1m", {"history": 0}, tmp_path)
    sizes = {
        domain: tuple(made.about.parts[domain][split].rows for split in ("train", "valid", "test"))
        for domain in made.domains
    }
    assert {domain: rows[0] for domain, rows in sizes.items() if rows[0] == 3000} == {
        "crime": 3000,
        "family": 3000,
    }
    assert sum(rows[2] for rows in sizes.values()) == pytest.approx(100_020, rel=0.01)
    assert 0.05 < made.about.unseen["item.id"].rows < 0.15


@real
def test_the_real_domains_have_the_rows_that_the_docstring_lists():
    frame = source(None, **WHOLE, history=0).interactions().frame
    for domain, rows in sizes(frame, "domain").items():
        assert f"{domain} {rows:,}" in str(movielens_1m.__doc__)

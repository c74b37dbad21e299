"""The magazines' protocol, on a made-up copy, and on the real one where `MDCTR_DATA_DIR` names it."""

import os
from pathlib import Path

import polars as pl
import pytest

from service.contract import hashing
from service.contract.errors import RunError
from training.data.prepare import prepare
from training.data.sources import amazon_magazines

real = pytest.mark.skipif(
    not os.environ.get("MDCTR_DATA_DIR"), reason="MDCTR_DATA_DIR, the folder of real data, is not set"
)
DAY = 86_400_000

Row = tuple[str, str, str | None, int, int]
"""user, item, domain, label, day"""


def log() -> list[Row]:
    """Forty days of two domains that are seen and one that is held out, and one row of a small one."""
    rows: list[Row] = []
    for day in range(40):
        rows += [
            ("often", f"h{day % 4}", "Home & Garden", day % 2, day),
            (f"u{day}", "s0", "Sports", 1, day),
            ("often", "t0", "Travel", 1, day),
        ]
    return [*rows, ("u1", "n0", "Newspapers", 1, 40), ("u1", "x0", None, 1, 40)]


def publish(root: Path, rows: list[Row]) -> Path:
    folder = root / "amazon_magazines"
    folder.mkdir()
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "domain", "label", "day"], orient="row")
    items = [
        ("h0", None, "Hearst", "Magazine Subscriptions > Home & Garden > Home Design", "All of it."),
        ("h1", None, None, "Magazine Subscriptions > Home & Garden", None),
        ("x1", "A title", None, None, None),
        *(
            (item, None, "Brand", "Magazine Subscriptions > Some", None)
            for item in ("h2", "h3", "s0", "t0", "n0")
        ),
        ("x0", None, "Brand", None, "What it is."),
    ]
    frames = {
        "interactions": log.with_columns(
            pl.col("label").cast(pl.Int8),
            rating=pl.col("label").cast(pl.Int8) * 4 + 1,
            timestamp=pl.col("day") * DAY,
        ).drop("day"),
        "items": pl.DataFrame(
            items, schema=["item_id", "item_title", "brand", "category_path", "description_500"], orient="row"
        ),
    }
    sums = []
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
        sums.append(f"{hashing.file(folder / f'{name}.parquet')}  amazon_magazines/{name}.parquet\n")
    (root / "SHA256SUMS").write_text("".join(sums))
    return folder


def source(folder: Path | None, **options: object) -> amazon_magazines.Magazines:
    given = {"folder": folder, "held_out": ("Travel",), "least": 10, **options}
    return amazon_magazines.open(amazon_magazines.Options.model_validate(given))


def test_held_out_and_small_domains_are_left_out_and_counted(tmp_path):
    rows = log()
    given = source(publish(tmp_path, [*rows, rows[0]])).interactions()
    assert set(given.frame["domain"]) == {"Home & Garden", "Sports"}
    assert given.dropped == {
        "same user, item and day": 1,
        "no category, or a small one": 2,
        "not among the domains asked for (seen)": 40,
    }


@pytest.mark.parametrize("only", ["seen", "held_out"])
def test_the_splits_have_the_same_dates_whatever_is_asked_for(tmp_path, only):
    given = source(publish(tmp_path, log()), only=only).interactions()
    days = given.frame.group_by("split").agg(
        first=pl.col("time").min() // 86_400, last=pl.col("time").max() // 86_400
    )
    assert {row["split"]: (row["first"], row["last"]) for row in days.to_dicts()} == {
        "train": (0, 31),
        "valid": (32, 35),
        "test": (36, 39),
    }
    assert given.frame["time"].is_sorted()


def test_a_history_is_of_positives_of_earlier_days_in_seen_domains(tmp_path):
    folder = publish(tmp_path, log())
    often = pl.col("user.id") == "often"
    rows = source(folder, history=2).interactions().frame.filter(often)
    histories = rows.sort("time")["user.history"].to_list()
    assert histories[:7] == [None, None, ["h1"], ["h1"], ["h1", "h3"], ["h1", "h3"], ["h3", "h1"]]
    apart = source(folder, history=2, only="held_out").interactions().frame.filter(often)
    assert apart["user.history"].to_list() == histories


def test_names_are_brand_and_category_and_texts_add_the_description(tmp_path):
    rows = source(publish(tmp_path, log())).items().rows(named=True)
    assert rows[0] == {
        "item.id": "h0",
        "item.brand": "Hearst",
        "item.category": ["Home & Garden", "Home Design"],
        "name": "Hearst, Home & Garden > Home Design",
        "text": "Hearst, Home & Garden > Home Design. All of it.",
    }
    assert (rows[1]["name"], rows[1]["text"]) == ("Home & Garden", "Home & Garden")
    assert (rows[2]["name"], rows[2]["text"]) == (None, None)
    assert (rows[-1]["name"], rows[-1]["text"]) == ("Brand", "Brand. What it is.")


def test_a_domain_that_is_not_there_cannot_be_held_out(tmp_path):
    with pytest.raises(RunError, match="no domain Cars to hold out"):
        source(publish(tmp_path, log()), held_out=("Travel", "Cars")).interactions()


def test_no_history_is_no_field(tmp_path):
    some = source(publish(tmp_path, log()), history=0)
    assert "user.history" not in [field.key for field in some.fields]
    assert "user.history" not in some.interactions().frame.columns


@real
def test_the_real_data(tmp_path):
    seen = prepare("amazon_magazines", {}, tmp_path)
    held_out = prepare("amazon_magazines", {"only": "held_out"}, tmp_path)

    def rows(domain: str) -> list[int]:
        about = (held_out if domain in held_out.domains else seen).about
        return [part.rows for part in about.parts[domain].values()]

    assert len(seen.domains) == 14
    assert held_out.domains == ("children-teen", "travel-city-regional")
    assert rows("professional-educational-journals") == [8_919, 1_147, 1_189]
    assert rows("technology") == [929, 77, 25]
    assert rows("children-teen") == [2_875, 443, 245]
    assert rows("travel-city-regional") == [3_100, 375, 488]
    assert seen.about.dropped["same user, item and day"] == 1
    assert seen.about.unseen["user.id"].rows > 0.9

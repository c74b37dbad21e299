"""The simulator in parts, by days, and with tastes that turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from training.data.prepare import SPLITS
from training.data.sources import synthetic

DOMAINS = {"feed": 6_000, "shop": 3_000, "new": 1_001}
SMALL: dict[str, Any] = {"domains": DOMAINS, "users": 200, "items": 150, "days": 20}
FIRST = 1_704_067_200


def options(**changed: Any) -> synthetic.Options:
    return synthetic.Options.model_validate(SMALL | changed)


def parted(**changed: Any) -> synthetic.Parted:
    found = synthetic.open(options(**changed))
    assert isinstance(found, synthetic.Parted)
    return found


def test_parts_have_all_rows_in_order_of_time() -> None:
    parts = [part.frame for part in parted(part=1_200).parts()]
    assert len(parts) == 9
    assert max(part.height for part in parts) <= 1_200
    frame = pl.concat(parts)
    assert dict(frame["domain"].value_counts().iter_rows()) == DOMAINS
    assert frame["time"].is_sorted()
    assert parted(part=1_200).interactions().frame.equals(frame)
    split = [FIRST + share * 20 * 86_400 for share in (0.8, 0.9)]
    assert frame.filter(pl.col("time") < split[0])["split"].unique().to_list() == ["train"]
    assert frame.filter(pl.col("time") >= split[1])["split"].unique().to_list() == ["test"]


def test_a_part_is_the_same_world_and_other_rows() -> None:
    one, all_at_once = parted(part=1_200), synthetic.open(options())
    assert one.items().equals(all_at_once.items())
    assert one.users.equals(all_at_once.users)
    np.testing.assert_array_equal(one.taste("shop")[0], all_at_once.taste("shop")[0])
    first, second = (part.frame for part, _ in zip(one.parts(), range(2), strict=False))
    assert not first["user.id"].head(100).equals(second["user.id"].head(100))
    rows = pl.concat(part.frame for part in one.parts())
    assert roc_auc_score(rows["label"], rows["probability"]) > 0.75
    p = rows["probability"].to_numpy()
    assert abs(rows["label"].sum() - p.sum()) <= 4 * np.sqrt((p * (1 - p)).sum())


@pytest.mark.parametrize("part", [None, 1_500])
def test_days_are_those_of_the_whole_world(part: int | None) -> None:
    whole = synthetic.open(options(part=part)).interactions().frame
    some = synthetic.open(options(part=part, since=5, until=8)).interactions().frame
    days = (pl.col("time") - FIRST) // 86_400
    expected = whole.filter(days.is_between(5, 7))
    assert some.drop("split", strict=False).equals(expected.drop("split", strict=False))
    assert 0 < some.height < whole.height


def test_of_the_days_given_the_last_are_held_out() -> None:
    frame = synthetic.open(options(since=10, held_out=0.2)).interactions().frame
    day = (frame["time"] - FIRST) // 86_400
    found = {name: day.filter(frame["split"] == name).unique().sort().to_list() for name in SPLITS}
    assert found == {"train": [10, 11, 12, 13, 14, 15], "valid": [16, 17], "test": [18, 19]}


def test_tastes_turn_from_the_first_day_to_the_last() -> None:
    still, turning = synthetic.open(options()), synthetic.open(options(drift=1))
    user, item = np.arange(200), np.arange(150)[:, None]
    hour, device = np.zeros(1, np.int64), np.zeros(1, np.int64)

    def logit(of: synthetic.Synthetic, when: float) -> np.ndarray:
        p = of.probability("feed", user, item, hour, device, when=when)
        return np.asarray(np.log(p / (1 - p))).ravel()

    np.testing.assert_allclose(logit(still, 0), logit(still, 1))
    np.testing.assert_allclose(logit(turning, 0), logit(still, 0))
    agreed = [np.corrcoef(logit(turning, 0), logit(turning, when))[0, 1] for when in (0.25, 0.5, 1)]
    assert agreed == sorted(agreed, reverse=True)
    assert abs(agreed[-1]) < 0.35  # two tastes of a few profile values are not wholly apart
    # Each of them has the same mean and deviation, and so has what lies between.
    spread = [logit(turning, when).std() for when in (0, 0.5, 1)]
    assert spread == pytest.approx([spread[0]] * 3, rel=0.2)


def test_what_came_later_changes_no_print_where_it_is_not_used() -> None:
    known = {
        "domains",
        "users",
        "items",
        "days",
        "domain_share",
        "id_share",
        "late_share",
        "strength",
        "seed",
    }
    assert set(options().model_dump(mode="json")) == known
    assert set(options(part=7, drift=0.5).model_dump(mode="json")) == known | {"part", "drift"}


@pytest.mark.parametrize(
    "wrong", [{"part": 0}, {"drift": 1.1}, {"since": 20}, {"since": 5, "until": 5}, {"held_out": 0.5}]
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**wrong)

"""KuaiRand's protocol, on a made-up copy, and on the real one where `MDCTR_DATA_DIR` names it."""

import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from service.contract import hashing
from service.contract.errors import RunError
from training.data.prepare import prepare
from training.data.sources import kuairand

real = pytest.mark.skipif(
    not os.environ.get("MDCTR_DATA_DIR"), reason="MDCTR_DATA_DIR, the folder of real data, is not set"
)
SEEN_AFTER = (
    *("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter"),
    *("long_view", "play_time_ms"),
)
MOVING = (
    *("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
    *("follow_user_num_range", "fans_user_num_range", "friend_user_num_range"),
)


def moment(day: int, hour: int, minute: int = 0, month: int = 5) -> int:
    """Milliseconds of a UTC time in 2022; China's clock is eight hours ahead."""
    return int(datetime(2022, month, day, hour, minute, tzinfo=UTC).timestamp()) * 1000


def exposure(user: int, item: int, tab: int, label: int, at: int, *, play: int = 5) -> dict[str, int]:
    row = {"user_id": user, "item_id": item, "domain": tab, "label": label, "timestamp": at}
    return row | dict.fromkeys(SEEN_AFTER, 0) | {"play_time_ms": play, "duration_ms": 9_000}


LOG = [
    exposure(0, 0, 1, 1, moment(24, 16, month=4)),
    exposure(0, 0, 1, 1, moment(24, 16, month=4)),  # a whole repeat
    exposure(0, 1, 1, 0, moment(1, 3)),
    exposure(0, 1, 1, 0, moment(1, 3), play=6),  # not quite: it was played twice
    exposure(1, 1, 0, 0, moment(2, 3)),
    exposure(1, 1, 3, 0, moment(2, 4)),  # another tab
    exposure(1, 0, 5, 1, moment(2, 5)),  # another tab
    exposure(1, 0, 6, 1, moment(4, 15, 59)),  # 23:59 on 4 May in China
    exposure(1, 2, 6, 0, moment(4, 16)),  # midnight there
    exposure(0, 2, 1, 1, moment(6, 15, 59)),
    exposure(0, 2, 1, 1, moment(6, 16)),
    exposure(0, 2, 1, 1, moment(6, 16)),  # a whole repeat
    exposure(1, 2, 4, 0, moment(7, 15, 59)),
]
USERS = [
    {"user_id": user, "register_days": 900, "register_days_range": "730+"}
    | dict.fromkeys(MOVING, "x")
    | {f"onehot_feat{at}": (None if at == 12 and user else at + user) for at in range(18)}
    for user in range(2)
]
ITEMS = {
    "item_id": [0, 1, 2],
    "author_id": [70, 71, 72],
    "video_type": ["NORMAL", "AD", "NORMAL"],
    "upload_dt": ["2022-04-09"] * 3,
    "upload_type": ["Web", "Kmovie", "Web"],
    "video_duration": [7_999.0, 8_500.0, None],
    "music_type": [9.0, None, 4.0],
    "tag": ["39,3", "7", None],
}
HISTORY = {
    "user_id": [0, 1],
    "last_time_ms": [moment(24, 10, month=4), moment(2, 3, 30)],
    "watch_seq": [[0, 1, 2], [2, 2]],
}


def publish(root: Path) -> Path:
    folder = root / "kuairand"
    folder.mkdir()
    small = [pl.col("user_id", "item_id").cast(pl.Int32), pl.col("domain", "label").cast(pl.Int8)]
    frames = {
        "interactions": pl.DataFrame(LOG).with_columns(*small),
        "users": pl.DataFrame(USERS).with_columns(pl.col("onehot_feat12").cast(pl.Float64)),
        "items": pl.DataFrame(ITEMS),
        "history_before_window": pl.DataFrame(HISTORY, schema_overrides={"watch_seq": pl.List(pl.Int16)}),
    }
    sums = []
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
        sums.append(f"{hashing.file(folder / f'{name}.parquet')}  kuairand/{name}.parquet\n")
    (root / "SHA256SUMS").write_text("".join(sums))
    return folder


def source(folder: Path | None, **options: object) -> kuairand.KuaiRand:
    return kuairand.open(kuairand.Options.model_validate({"folder": folder, **options}))


def test_a_day_is_chinas(tmp_path):
    frame = source(publish(tmp_path)).interactions().frame
    assert frame.select("domain", "split", "context.hour").rows() == [
        ("tab-1", "train", 0),
        ("tab-1", "train", 11),
        ("tab-1", "train", 11),
        ("tab-0", "train", 11),
        ("tab-6", "train", 23),
        ("tab-6", "valid", 0),
        ("tab-1", "valid", 23),
        ("tab-1", "test", 0),
        ("tab-4", "test", 23),
    ]
    assert frame["time"][0] == moment(24, 16, month=4) // 1000


def test_repeats_and_other_tabs_are_dropped_and_counted(tmp_path):
    given = source(publish(tmp_path)).interactions()
    assert given.dropped == {"whole repeats": 2, "other tabs": 2}
    assert given.frame.height == len(LOG) - 4


def test_what_is_seen_after_the_exposure_never_leaves(tmp_path):
    folder = publish(tmp_path)
    some = source(folder, history=2)
    made = prepare("kuairand", {"folder": folder, "history": 2}, tmp_path / "runs")
    columns = {field.name for field in some.fields}
    for frame in (some.interactions().frame, some.items(), made.items(), made.split("train")):
        columns |= {column.split(".")[-1] for column in frame.columns}
    assert not columns & {*SEEN_AFTER, *MOVING, "is_click", "timestamp", "last_time_ms"}
    assert not [column for column in columns if column.startswith(("is_", "play_", "long_"))]


def test_profiles_stand_beside_their_users(tmp_path):
    frame = source(publish(tmp_path)).interactions().frame
    assert frame["user.id"].to_list() == [0, 0, 0, 1, 1, 1, 0, 0, 1]
    assert (frame["user.onehot_feat3"] == frame["user.id"] + 3).all()
    assert frame["user.onehot_feat12"].to_list() == [12, 12, 12, None, None, None, 12, 12, None]


def test_items_have_bands_of_duration_and_lists_of_tags(tmp_path):
    items = source(publish(tmp_path)).items()
    assert items["item.duration_band"].to_list() == [2, 3, None]  # 4 to 8 seconds, 8 to 16
    assert items["item.tags"].to_list() == [[39, 3], [7], None]
    assert items["item.music_type"].to_list() == [9, None, 4]


def test_a_history_is_known_only_after_it_ended(tmp_path):
    frame = source(publish(tmp_path), history=2).interactions().frame
    of = {user: frame.filter(pl.col("user.id") == user)["user.history"].to_list() for user in (0, 1)}
    assert of[0] == [[1, 2]] * 5
    assert of[1] == [None, [2, 2], [2, 2], [2, 2]]  # the first row is from before


def test_only_files_that_are_read_are_checked(tmp_path):
    folder = publish(tmp_path)
    without = source(folder).checksum
    assert source(folder, history=2).checksum != without
    (folder / "history_before_window.parquet").write_bytes(b"another")
    assert source(folder).checksum == without
    with pytest.raises(RunError, match=r"history_before_window\.parquet has checksum"):
        source(folder, history=2).interactions()
    (folder / "users.parquet").unlink()
    with pytest.raises(RunError, match=r"kuairand: .*users\.parquet is not there"):
        source(folder).items()


@real
def test_the_real_data(tmp_path):
    made = prepare("kuairand", {}, tmp_path)
    sizes = {
        domain: tuple(made.about.parts[domain][split].rows for split in ("train", "valid", "test"))
        for domain in made.domains
    }
    assert sizes == {
        "tab-0": (15_360, 2_357, 1_197),
        "tab-1": (129_918, 20_759, 10_367),
        "tab-2": (4_785, 985, 535),
        "tab-4": (10_196, 1_632, 873),
        "tab-6": (4_594, 542, 286),
    }
    assert made.about.dropped == {"whole repeats": 5_607, "other tabs": 2_755}
    assert made.items().height == 7_583


@real
def test_the_real_log_has_the_rows_that_its_description_lists():
    published = Path(os.environ["MDCTR_DATA_DIR"]) / "kuairand" / "interactions.parquet"
    tabs = dict(pl.read_parquet(published, columns=["domain"])["domain"].value_counts().iter_rows())
    assert {tab: tabs[tab] for tab in (0, 1, 2, 4, 6)} == {
        0: 18_929,
        1: 161_044,
        2: 6_305,
        4: 12_701,
        6: 10_734,
    }


@real
def test_no_user_was_seen_before_registering_if_profiles_are_of_8_may():
    """What the source's docstring concludes from: profiles are from after the test rows."""
    folder = Path(os.environ["MDCTR_DATA_DIR"]) / "kuairand"
    log = pl.read_parquet(folder / "interactions.parquet", columns=["user_id", "timestamp"])
    watched = pl.read_parquet(folder / "history_before_window.parquet", columns=["user_id", "last_time_ms"])
    seen = pl.concat(
        [
            log.select(pl.col("user_id").cast(pl.Int64), at="timestamp"),
            watched.select(pl.col("user_id").cast(pl.Int64), at="last_time_ms"),
        ]
    )
    first = seen.group_by("user_id").agg(pl.col("at").min())
    users = pl.read_parquet(folder / "users.parquet", columns=["user_id", "register_days"])
    latest = first.join(users, on="user_id").select(
        day=(pl.from_epoch("at", time_unit="ms").dt.offset_by("8h").dt.date())
        + pl.duration(days="register_days")
    )["day"]
    by_day = latest.value_counts().sort("day").head(4)
    assert by_day["day"].cast(pl.String).to_list() == ["2022-05-08", "2022-05-09", "2022-05-10", "2022-05-11"]
    assert by_day["count"].to_list() == [6, 9, 7, 9]

"""The log as data: what users of the simulator clicked, logged by the service's own writer, comes back."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from service.contract.errors import RunError
from service.exposures import Exposure, ExposureLog
from service.question import Question
from service.telemetry import Metrics
from training.data.prepare import prepare
from training.data.sources import exposures, synthetic

WEEK = {"domains": {"feed": 900, "new": 300}, "users": 40, "items": 60, "days": 7}
"""A simulated week."""
FIELDS = [each for each in synthetic.Synthetic.fields if each.owner != "item"]


def logged(folder: Path, rows: pl.DataFrame, **changes: object) -> Path:
    """Each of the simulator's rows as a request with one item."""
    with closing(ExposureLog(folder, Metrics(), part_seconds=600, part_bytes=10**9, most=10**9)) as log:
        for at, row in enumerate(rows.to_dicts()):
            asked = {
                owner: {each.name: row[each.key] for each in FIELDS if each.owner == owner}
                for owner in ("user", "context")
            }
            given = {
                "request_id": f"r{at}", "time": float(row["time"]), "unit": row["user.id"],
                "experiment": "trial", "arm": "a", "domain": row["domain"], "bundle": "b",
                "pack": "0" * 16, "propensity": 0.25,
                "status": 200, "ms": 1.0, "pack_domain": None, "items": None, "shadow_pack": None,
                "request": Question(asked["user"], asked["context"], None, {}),
                "ids": [row["item.id"]], "scores": np.array([row["probability"]]),
            }  # fmt: skip
            log.add(Exposure(**{**given, **changes}))
            if row["label"]:
                log.tell([(f"r{at}", row["item.id"], float(row["time"]) + 5, "click")])
    return folder


def options(log: Path, **more: object) -> dict[str, object]:
    return {"log": log, "of": {"name": "synthetic", **WEEK}, **more}


@pytest.fixture(scope="module")
def week() -> pl.DataFrame:
    made = synthetic.open(synthetic.Options.model_validate(WEEK)).interactions().frame
    return made.sort("time", maintain_order=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, week: pl.DataFrame) -> Path:
    return logged(tmp_path_factory.mktemp("log"), week)


def source(log: Path, **more: object) -> exposures.Exposures:
    return exposures.open(exposures.Options.model_validate(options(log, **more)))


def test_a_simulated_week_comes_back_from_its_log(log, week) -> None:
    given = source(log).interactions()
    assert given.protocol == "a service's log: 1,200 requests, every item that was answered"
    assert given.dropped == {}
    columns = ["domain", "label", "time", "item.id", *(each.key for each in FIELDS)]
    assert_frame_equal(given.frame.select(columns), week.select(columns), check_dtypes=False)
    assert set(given.frame["position"]) == {0}
    assert set(given.frame["propensity"]) == {0.25}
    assert {each.key: given.frame.schema[each.key] for each in FIELDS} == {
        each.key: week.schema[each.key] if each.kind != "number" else pl.Float64 for each in FIELDS
    }


def test_prepared_it_is_what_the_week_itself_is_and_keeps_two_columns_more(log, tmp_path) -> None:
    made = prepare("exposures", options(log), tmp_path)
    direct = prepare("synthetic", WEEK, tmp_path)
    assert made.schema == direct.schema
    rows = {name: each.split("train").sort("row") for name, each in (("log", made), ("week", direct))}
    shared = [name for name in rows["week"].columns if name not in {"row", "probability"}]
    assert_frame_equal(
        rows["log"].select(shared).sort([*shared[:3], "user.id", "item.id"]),
        rows["week"].select(shared).sort([*shared[:3], "user.id", "item.id"]),
        check_dtypes=False,
    )
    assert {"position", "propensity"} <= set(rows["log"].columns)


def test_items_have_positions_and_clicks_their_place(tmp_path, week) -> None:
    row = week.head(1)
    one, two = source(tmp_path).items()["item.id"].to_list()[:2]
    ids, scores = [two, one, two, "unknown"], np.full(4, 0.5)
    with closing(
        ExposureLog(tmp_path / "log", Metrics(), part_seconds=600, part_bytes=10**9, most=10**9)
    ) as log:
        log.tell([("r0", two, 9.0, "click"), ("r0", two, 9.5, "click"), ("r9", one, 9.0, "click")])
        log.tell([("r0", each, 9.0, "shown") for each in (one, two)])
    logged(tmp_path / "log", row.with_columns(label=pl.lit(0)), ids=ids, scores=scores)
    logged(tmp_path / "log", row.with_columns(label=pl.lit(0)), ids=ids, scores=scores)  # once again
    logged(tmp_path / "log", row, request_id="r1", request=None)
    logged(tmp_path / "log", row, request_id="r2", status=503, ids=[], scores=np.zeros(0))
    given = source(tmp_path / "log").interactions()
    assert given.frame.select("item.id", "position", "label").rows() == [
        (two, 0, 1),
        (one, 1, 0),
        (two, 2, 0),
        ("unknown", 3, 0),
    ]
    assert given.dropped == {"request not logged": 1, "answer logged again": 1}
    shown = source(tmp_path / "log", shown=True).interactions()
    assert shown.frame["item.id"].to_list() == [two, one, two]
    assert shown.protocol.endswith("every item that was shown")


def test_a_log_that_is_not_there_or_says_too_little(tmp_path, week) -> None:
    with pytest.raises(RunError, match="there is no log"):
        exposures.open(exposures.Options()).interactions()
    with pytest.raises(RunError, match="is not a folder"):
        source(tmp_path / "none").checksum  # noqa: B018 - reading it is the test
    with pytest.raises(RunError, match="has no exposures"):
        source(tmp_path).interactions()
    logged(tmp_path, week.head(2), request=None)
    with pytest.raises(RunError, match="says what was asked"):
        source(tmp_path).interactions()

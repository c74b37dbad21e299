"""Domains that a model has not seen, where a recipe tunes nothing; with tuning: `test_compare_teachers`."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pytest
from rich.progress import Progress
from sklearn.metrics import roc_auc_score

from tests.conftest import Trained
from training import unseen
from training.data.batches import Rows
from training.data.prepare import prepare


def test_nothing_is_said_of_a_pack_that_was_not_tuned(tiny: Trained, tmp_path: Path) -> None:
    source = {**tiny.recipe.data.options, "domains": {"other": 400}}
    others = prepare("synthetic", source, tmp_path)
    recipe = tiny.recipe.model_copy(update={"tuning": tiny.recipe.tuning.model_copy(update={"epochs": 0})})
    with Progress(disable=True) as bars:
        judged = unseen.judge(tiny.model, others, recipe, bars)
    (tmp_path / unseen.FILE).write_bytes(judged)
    found = unseen.figures([("plate", tmp_path, others.path), ("mix", tmp_path, None)])
    test = others.split("test").join(pl.read_parquet(io.BytesIO(judged)), on="row")
    expected = roc_auc_score(test["label"], test["general"])
    rows = Rows.encode(
        others.split("test").with_columns(domain=pl.lit(tiny.model.domains[0])),
        tiny.model.schema,
        tiny.model.domains,
    )
    best = max(
        roc_auc_score(rows.label, tiny.model.logits(rows, domain).numpy()) for domain in tiny.model.domains
    )
    assert found == {
        "plate": {
            "other": {
                "general_auc_mean": pytest.approx(expected),
                "general_auc_std": 0.0,
                "best_own_auc_mean": pytest.approx(best),
                "best_own_auc_std": 0.0,
            }
        }
    }

"""A run that goes on from another one with a new day: what stays, what moves, and what that is worth."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from rich.progress import Progress
from typer.testing import CliRunner

from export.bundle import build
from export.publish import publish
from loadtest.replay import requests
from service.contract.errors import RunError
from service.contract.field import OOV
from service.stores._open import open_store
from tests.conftest import TINY, Trained, train
from tests.service.conftest import JSON, running
from tests.service.waiting import eventually
from training import checkpoint
from training.__main__ import app
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.data.sources import synthetic
from training.evaluation import Labelled, evaluate
from training.fit import Fit
from training.recipe import Recipe
from training.start import Start

WORLD: dict[str, Any] = {
    "domains": {"big": 36_000, "mid": 18_000, "small": 6_000},
    "users": 120,
    "items": 80,
    "days": 10,
    "drift": 0.8,
}
SLOWER: dict[str, Any] = {
    "joint": {"epochs": 3, "batch": 256, "lr": 1e-3},
    "tuning": {"epochs": 3, "batch": 128, "lr": 1e-3},
}
LAST_WEEK = {**WORLD, "until": 8}
DAY = {**WORLD, "since": 8, "until": 9}
NEXT_DAY = {**WORLD, "since": 9}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("old")
    return train(folder / "run", folder / "data", data={"name": "synthetic", **LAST_WEEK})


def go_on(old: Trained, folder: Path, options: dict[str, Any] = DAY, /, **changes: Any) -> Trained:
    recipe = Recipe.model_validate({**TINY, **SLOWER, "data": {"name": "synthetic", **options}, **changes})
    start = Start.open(old.folder, old.data, recipe)
    prepared = prepare("synthetic", options, old.data, start.fitted)
    run = Run(folder, recipe, prepared, start=start.digest)
    with Progress(disable=True) as bars:
        model = Fit(recipe, prepared, run, bars, start=start)()
    return Trained(folder, old.data, recipe, prepared, model)


@pytest.fixture(scope="module")
def new(old: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return go_on(old, tmp_path_factory.mktemp("new") / "run")


def test_new_rows_are_encoded_as_the_old_run_would(old: Trained, new: Trained) -> None:
    assert new.prepared.schema.fingerprint == old.prepared.schema.fingerprint
    assert new.prepared.domains == old.prepared.domains
    assert new.prepared.path != old.prepared.path
    frame = new.prepared.split("train")
    first = 1_704_067_200 + 8 * 86_400
    assert frame["time"].min() >= first  # type: ignore[operator]
    assert old.prepared.split("test")["time"].max() < first  # type: ignore[operator]
    slot = new.prepared.schema.slots["user.id"]
    strange = ~frame["user.id"].is_in(list(slot.field.values))
    ids = Rows.encode(frame, new.prepared.schema, new.prepared.domains).request_ids[:, slot.at.start]
    assert strange.any()
    assert ((ids == slot.offset + OOV).numpy() == strange.to_numpy()).all()


@pytest.mark.parametrize(
    "paradigm", [TINY["paradigm"], {"name": "single"}, {"name": "finetune"}, {"name": "star"}]
)
def test_no_epochs_is_the_old_run_bit_by_bit(old: Trained, tmp_path: Path, paradigm: dict[str, Any]) -> None:
    before = old
    if paradigm != TINY["paradigm"]:
        short = {"epochs": 1, "batch": 512, "lr": 5e-3}
        changes = {"data": old.recipe.data, "paradigm": paradigm, "joint": short, "tuning": short}
        before = train(tmp_path / "old", old.data, **changes)
    none = {"epochs": 0}
    after = go_on(before, tmp_path / "new", DAY, paradigm=paradigm, joint=none, tuning=none)
    one, two = before.model.paradigm.state_dict(), after.model.paradigm.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for domain in (None, *before.model.domains):
        a, b = before.model.pack(domain), after.model.pack(domain)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), domain


def test_what_tuning_had_added_is_added_to_what_the_joint_stage_makes(old: Trained, tmp_path: Path) -> None:
    moved = go_on(old, tmp_path / "new", DAY, joint={"epochs": 1, "lr": 1e-3}, tuning={"epochs": 0})
    assert json.loads((moved.folder / "log.jsonl").read_text())["epoch"] == 1
    somewhere = False
    for at, domain in enumerate(old.model.domains):
        before, after = old.model.paradigm.pack(at), moved.model.paradigm.pack(at)
        tuned, kept = old.model.pack(domain), moved.model.pack(domain)
        for name in tuned:
            expected = after[name] + (tuned[name] - before[name])
            torch.testing.assert_close(kept[name], expected, rtol=1e-5, atol=1e-6)
            somewhere |= not torch.equal(before[name], after[name])
    assert somewhere


def test_a_domain_without_rows_that_day_keeps_what_it_had(old: Trained, tmp_path: Path) -> None:
    some = {**DAY, "domains": {"big": 36_000, "mid": 18_000}}
    after = go_on(old, tmp_path / "new", some, joint={"epochs": 0})
    assert after.prepared.about.parts["small"]["train"].rows == 0
    assert after.prepared.domains == old.prepared.domains
    before, now = old.model.pack("small"), after.model.pack("small")
    assert all(torch.equal(before[name], now[name]) for name in before)
    assert any(not torch.equal(old.model.pack("big")[name], after.model.pack("big")[name]) for name in before)


def quality(trained: Trained, prepared: Prepared) -> dict[str, float]:
    valid = Labelled.of(trained.prepared, "valid").rows
    splits = [Labelled.of(prepared, split) for split in ("train", "valid", "test")]
    rows = splits[0].rows.joined(splits[1].rows).joined(splits[2].rows)
    user = np.concatenate([split.user for split in splits])
    found = evaluate(trained.model, Labelled(rows, user), valid).report["macro"]["pack"]
    return {name: found[name] for name in ("auc", "logloss")}


def test_a_day_more_makes_the_next_day_better(old: Trained, new: Trained) -> None:
    """Tastes turn, so the world of a week ago says less and less."""
    next_day = prepare("synthetic", NEXT_DAY, old.data, Start.open(old.folder, old.data, old.recipe).fitted)
    before, after = quality(old, next_day), quality(new, next_day)
    assert after["auc"] > before["auc"] + 0.003
    assert after["logloss"] < before["logloss"]


def test_it_is_exported_and_served_as_any_run(new: Trained, tmp_path: Path) -> None:
    metrics = checkpoint.load(new.folder, new.data)[3]
    assert metrics["macro"]["pack"]["auc"] > 0.5
    bundle = build(new.recipe, new.prepared, new.model, metrics, tmp_path / "bundles")
    url = f"directory:{tmp_path / 'store'}"
    asyncio.run(publish(bundle, open_store(url, bundle.manifest.bundle)))
    with running(bundle, url) as service:
        eventually(service.ready)
        for domain in new.model.domains:
            frame = new.prepared.split("test").filter(pl.col("domain") == domain).head(20)
            rows = Rows.encode(frame, new.model.schema, new.model.domains)
            logit = new.model.calibrated(new.model.logits(rows, domain).numpy(), domain)
            found = np.full(frame.height, np.nan)
            for each in requests(frame, bundle.schema, domain, 1000):
                answer = service.client.post(each.path, content=each.body, headers=JSON)
                assert answer.status_code == 200, answer.text
                found[each.rows] = answer.json()["probabilities"]
            np.testing.assert_allclose(found, 1 / (1 + np.exp(-logit)), atol=1e-5)


def test_a_killed_one_goes_on_only_from_the_same_run(old: Trained, new: Trained, tmp_path: Path) -> None:
    again = go_on(old, tmp_path / "again")
    one, two = new.model.paradigm.state_dict(), again.model.paradigm.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(RunError, match="or another start; choose another folder"):
        Run(new.folder, new.recipe, new.prepared)
    with pytest.raises(RunError, match="or another start; choose another folder"):
        Run(new.folder, new.recipe, new.prepared, start="0123456789abcdef")


def test_what_cannot_be_gone_on_from_is_refused_in_a_line(
    old: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="its recipe has another paradigm, another dim"):
        go_on(old, tmp_path / "run", DAY, paradigm={"name": "mix"}, dim=4)
    with pytest.raises(RunError, match="is not a complete run"):
        Start.open(tmp_path / "none", old.data, old.recipe)
    fitted = Start.open(old.folder, old.data, old.recipe).fitted
    with pytest.raises(RunError, match=r"the model has no domain ads, new; `python -m export add-domain`"):
        prepare("synthetic", {**DAY, "domains": {"big": 900, "ads": 900, "new": 900}}, old.data, fitted)
    fewer = tuple(each for each in synthetic.Synthetic.fields if each.key != "context.hour")
    turned = (*fewer[:-1], fewer[-1].model_copy(update={"multiple": 2}))
    monkeypatch.setattr(synthetic.Synthetic, "fields", turned)
    with pytest.raises(RunError, match=r"not those of the schema to keep: context\.hour, item\.tags"):
        prepare("synthetic", {**DAY, "seed": 1}, old.data, fitted)


def test_the_command_goes_on_from_a_run(old: Trained, new: Trained, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, **SLOWER, "data": {"name": "synthetic", **DAY}}))
    arguments = ["fit", str(recipe), "--data", str(old.data), "--from", str(old.folder), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        new.folder / "weights.safetensors"
    ).read_bytes()
    *_, model, metrics = checkpoint.load(tmp_path / "run", old.data)
    assert metrics == json.loads(done.stdout)
    assert all(
        torch.equal(tensor, model.tuned["big"][name]) for name, tensor in new.model.tuned["big"].items()
    )
    other = [*arguments, "--out", str(tmp_path / "other"), "--dim", "4"]
    with pytest.raises(RunError, match="its recipe has another dim"):
        CliRunner().invoke(app, other, catch_exceptions=False)

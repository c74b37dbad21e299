from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from rich.progress import Progress

from service.contract.errors import RunError
from tests.conftest import TINY, Trained, train
from tests.killing import train_and_kill
from training import checkpoint
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import prepare
from training.fit import Fit
from training.metrics import auc
from training.model import logits
from training.paradigms.plate import Plate
from training.recipe import Recipe


def same(one: Trained, two: Trained) -> bool:
    a, b = one.model.paradigm.state_dict(), two.model.paradigm.state_dict()
    packs = [(one.model.pack(d), two.model.pack(d)) for d in (None, *one.model.domains)]
    return all(torch.equal(a[name], b[name]) for name in a) and all(
        torch.equal(p[name], q[name]) for p, q in packs for name in p
    )


# It saves after each step and each epoch: 3 is within the first epoch, 32 after the second one, 55 within the
# first domain's tuning.
@pytest.mark.parametrize("saved", [3, 32, 55])
def test_a_run_killed_and_resumed_ends_with_the_same_bits(saved: int, tiny: Trained, tmp_path: Path) -> None:
    train_and_kill(tmp_path / "run", tiny.data, saved, {})
    assert (tmp_path / "run" / "state.pt").exists()
    with pytest.raises(RunError, match="not a complete run"):
        checkpoint.load(tmp_path / "run", tiny.data)
    resumed = train(tmp_path / "run", tiny.data)
    assert same(tiny, resumed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len({(line["stage"], line["epoch"]) for line in lines}) == len(lines)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_complete_run_that_lost_a_file_is_refused(tiny: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny.folder, folder)
    domain = tiny.model.domains[0]
    for gone in (folder / "domains" / f"{domain}.safetensors", folder / "weights.safetensors"):
        gone.unlink()
        with pytest.raises(RunError, match=f"was complete, and now lacks .*{gone.name}"):
            checkpoint.load(folder, tiny.data)


def test_same_seed_same_bits_and_another_seed_others(tiny: Trained, tmp_path: Path) -> None:
    assert same(tiny, train(tmp_path / "again", tiny.data))
    assert not same(tiny, train(tmp_path / "other", tiny.data, seed=1))


def test_a_folder_of_another_recipe_is_refused(tiny: Trained) -> None:
    with pytest.raises(RunError, match="another recipe"):
        train(tiny.folder, tiny.data, seed=9)


def test_the_user_prompt_is_alive(tiny: Trained, tmp_path: Path) -> None:
    for user_prompt in ("fusion", "generative"):
        paradigm = {**TINY["paradigm"], "user_prompt": user_prompt}
        model = train(tmp_path / user_prompt, tiny.data, paradigm=paradigm).model
        assert isinstance(model.paradigm, Plate)
        ranker = model.paradigm.general
        assert ranker.user_prompt is not None
        rows = tiny.rows("train")
        with torch.inference_mode():
            request, _ = ranker.embedding(*rows.arrays)
            prompts = ranker.user_prompt(request.index_select(1, ranker.profile).flatten(1))
        by_user = torch.unique(prompts, dim=0)
        assert len(by_user) > 1
        assert (by_user.std(0) > 0).all(), user_prompt


def test_pte_leaves_the_prompts_as_initialised_until_tuning(tiny: Trained, tmp_path: Path) -> None:
    paradigm = {**TINY["paradigm"], "pretrain_prompts": False}
    started = train(
        tmp_path / "start", tiny.data, paradigm=paradigm, joint={"epochs": 0}, tuning={"epochs": 0}
    )
    trained = train(tmp_path / "pte", tiny.data, paradigm=paradigm)
    before, after = started.model.paradigm.pack(0), trained.model.paradigm.pack(0)
    prompts = [name for name in before if "prompt" in name]
    assert prompts
    assert all(torch.equal(before[name], after[name]) for name in prompts)
    assert not torch.equal(before["first_order.weight"], after["first_order.weight"])
    prompted = (trained.model.pack(domain)["domain_prompt"] for domain in trained.model.domains)
    untuned = (trained.model.paradigm.pack(at)["domain_prompt"] for at in range(3))
    assert any(not torch.equal(a, b) for a, b in zip(prompted, untuned, strict=True))


def test_epoch_0_is_a_candidate(tiny: Trained, tmp_path: Path) -> None:
    """Tuning at a ruinous learning rate never makes validation worse, and mostly keeps the bits it had."""
    ruined = train(tmp_path / "ruined", tiny.data, tuning={"epochs": 2, "lr": 1e3, "batch": 128})
    paradigm, valid = ruined.model.paradigm, ruined.rows("valid")
    kept = []
    for at, domain in enumerate(ruined.model.domains):
        own = valid.of(at)
        before, after = paradigm.pack(at), ruined.model.pack(domain)
        scores = (logits(paradigm.servable(), pack, own).numpy() for pack in (before, after))
        of_before, of_after = (auc(found, own.label.numpy()) for found in scores)
        assert of_after >= of_before
        kept.append(all(torch.equal(before[name], after[name]) for name in before))
        assert kept[-1] == (of_after == of_before)
    assert any(kept)


def test_tuning_leaves_rows_that_no_row_of_the_domain_has_bit_identical(tiny: Trained) -> None:
    model, rows = tiny.model, tiny.rows("train")
    for at, domain in enumerate(model.domains):
        own = rows.of(at)
        seen = torch.zeros(model.schema.rows, dtype=torch.bool)
        for ids in (own.request_ids, own.item_ids):
            seen[ids[ids >= 0].long()] = True
        for key in ("user.account_age_days", "item.price"):
            seen[model.schema.slots[key].offset] = True
        before, after = (
            model.paradigm.pack(at)["first_order.weight"],
            model.pack(domain)["first_order.weight"],
        )
        assert torch.equal(before[~seen], after[~seen])
        assert (~seen).any()


def test_a_mixed_model_with_enough_data_comes_within_a_point_of_the_best_auc(
    tmp_path: Path, data_root: Path
) -> None:
    """The simulator keeps each click's true probability, so the best possible AUC is known."""
    trained = train(
        tmp_path / "run",
        data_root,
        data={
            "name": "synthetic",
            "domains": {"a": 180_000, "b": 90_000, "c": 30_000},
            "domain_share": 0.0,
        },
        paradigm={"name": "mix"},
        dim=4,
        backbone={"name": "deepfm", "hidden": [64, 32], "dropout": 0.1},
        joint={"epochs": 6, "batch": 1024, "lr": 1e-3, "l2": 3e-4, "patience": 2},
    )
    rows = trained.rows()
    for at, domain in enumerate(trained.model.domains):
        own = rows.of(at)
        found = auc(trained.model.logits(own, domain).numpy(), own.label.numpy())
        assert found > trained.prepared.about.oracle_auc[domain] - 0.01, domain


def test_an_epoch_that_diverged_is_never_the_best(tiny: Trained, tmp_path: Path) -> None:
    diverged = train(tmp_path / "run", tiny.data, tuning={"epochs": 2, "lr": 1e30, "batch": 128})
    for domain in diverged.model.domains:
        assert all(tensor.isfinite().all() for tensor in diverged.model.pack(domain).values())


def test_a_domain_with_one_class_in_validation_is_tuned_by_log_loss(
    tiny: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `single` an undefined AUC would leave the initial weights."""
    original = Rows.encode.__func__  # type: ignore[attr-defined]

    def no_clicks(cls: type[Rows], frame: pl.DataFrame, *rest: Any) -> Rows:
        if frame.height == tiny.prepared.split("valid").height:
            frame = frame.filter((pl.col("domain") != "mid") | (pl.col("label") == 0))
        rows: Rows = original(cls, frame, *rest)
        return rows

    monkeypatch.setattr(Rows, "encode", classmethod(no_clicks))
    recipe = Recipe.model_validate({**TINY, "paradigm": {"name": "single"}})
    prepared = prepare(recipe.data.name, recipe.data.options, tiny.data)
    with Progress(disable=True) as bars:
        fit = Fit(recipe, prepared, Run(tmp_path / "run", recipe, prepared), bars)
        monkeypatch.setattr(fit, "_finish", lambda: None)
        model = fit()
    initial, tuned = model.paradigm.pack(1), model.pack("mid")
    assert not torch.equal(initial["embedding.table"], tuned["embedding.table"])


def test_a_rate_for_a_domain_that_does_not_exist_is_refused(tiny: Trained, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="boks"):
        train(tmp_path / "run", tiny.data, tuning={"lr_of": {"boks": 0.1}})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU of CUDA")
def test_a_run_on_a_gpu_ends_and_ranks_as_one_on_the_processor(tiny: Trained, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", tiny.data, device="cuda")
    found, expected = (
        json.loads((each.folder / "metrics.json").read_text())["macro"]["pack"]["auc"]
        for each in (trained, tiny)
    )
    assert found == pytest.approx(expected, abs=0.01)

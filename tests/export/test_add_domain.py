from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.progress import Progress
from typer.testing import CliRunner

from export import add_domain as adding
from export.__main__ import app
from export.add_domain import Addition, Tuned
from export.packs import named
from export.publish import publish
from export.weights import rebuild
from service.contract import hashing
from service.contract.bundle import Bundle
from service.contract.errors import Conflict, RunError
from service.contract.pack import DomainPack, version
from service.engines import ort
from service.stores._open import open_store
from service.stores._protocol import Promotion
from tests.conftest import Trained, train
from tests.export.test_bundle import build
from training import newcomer
from training.data.sources import synthetic
from training.metrics import auc
from training.model import logits

ROWS = 2000


@pytest.fixture(scope="module")
def bundle(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tiny, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fourth domain of the users and items that the tiny run knows."""
    domains = {"big": 3000, "mid": 1200, "small": 600, "late": ROWS}
    source = synthetic.open(synthetic.Options(domains=domains, users=120, items=80))
    frame = source.interactions().frame.filter(pl.col("domain") == "late").drop("domain", "probability")
    path = tmp_path_factory.mktemp("rows") / "late.parquet"
    frame.write_parquet(path)
    return path


@pytest.fixture
def store(tmp_path: Path, bundle: Bundle) -> str:
    """With the bundle published."""
    url = f"directory:{tmp_path / 'store'}"
    asyncio.run(publish(bundle, open_store(url, bundle.manifest.bundle)))
    return url


def run(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["add-domain", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def live(url: str, bundle: Bundle) -> Mapping[str, str | None]:
    return asyncio.run(open_store(url, bundle.manifest.bundle).live())


def kept(url: str, bundle: Bundle, domain: str, which: str) -> DomainPack:
    data = asyncio.run(open_store(url, bundle.manifest.bundle).fetch(domain, which))
    assert version(data) == which
    return DomainPack.from_bytes(data, bundle.base)


def history(url: str, bundle: Bundle, domain: str) -> list[Promotion]:
    return list(asyncio.run(open_store(url, bundle.manifest.bundle).history(domain)))


def test_the_pack_is_live_and_an_engine_gives_torchs_scores_over_an_untouched_body(
    bundle: Bundle, rows: Path, store: str
) -> None:
    before, others = hashing.file(bundle.path / "weights.safetensors"), live(store, bundle)
    command = [sys.executable, "-m", "export", "add-domain", "late", "--data", str(rows)]
    command += ["--bundle", str(bundle.path), "--store", store]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert live(store, bundle) == {**others, "late": report["version"]}
    (step,) = history(store, bundle, "late")
    assert step.run == f"late.parquet {hashing.file(rows)[:8]}, seed 0"
    Bundle.open(bundle.path)  # no file of it has changed
    assert hashing.file(bundle.path / "weights.safetensors") == before

    pack = kept(store, bundle, "late", report["version"])
    pack.check(bundle.manifest)
    held = newcomer.read(rows, bundle.schema, bundle.items, 0).parts["test"].rows
    tensors = {name: torch.from_numpy(np.array(tensor)) for name, tensor in pack.tensors.items()}
    expected = logits(rebuild(bundle).servable, tensors, held).numpy()
    engine = ort.open(bundle, threads=1)
    handle = engine.load(pack)
    found = [
        engine.score(named(held[at : at + 1].arrays, bundle.manifest.inputs), handle)[0]
        for at in range(len(held))
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(
        engine.score(pack.golden.inputs, handle), pack.golden.logit, atol=1e-5, rtol=1e-5
    )
    judged = report["quality"]["test"]["pack"]
    assert judged["auc"] == pytest.approx(auc(np.array(expected), held.label.numpy()), abs=1e-9)
    assert judged["auc"] > report["quality"]["test"]["general"]["auc"]
    assert report["quality"]["valid"]["pack"]["auc"] > report["quality"]["valid"]["general"]["auc"]
    assert report["rows"] == {"train": 1600, "valid": 200, "test": 200}
    assert report["split_by"] == "time"
    assert (report["published"], report["replaced"], report["stayed_general"]) == (True, None, False)
    assert report["seconds"].keys() == {"reading", "tuning", "publishing"}


def test_the_same_rows_give_the_same_pack_and_replace_asks_to_be_said(
    bundle: Bundle, rows: Path, store: str
) -> None:
    arguments = ["late", "--data", rows, "--bundle", bundle.path, "--store", store]
    first = run(*arguments)
    with pytest.raises(Conflict, match="--replace"):
        run(*arguments)
    again = run(*arguments, "--replace")
    assert (again["version"], again["replaced"]) == (first["version"], first["version"])
    assert len(history(store, bundle, "late")) == 1  # nothing was new
    other = run(*arguments, "--replace", "--seed", 1)
    assert other["version"] != first["version"]
    assert live(store, bundle)["late"] == other["version"]


def test_a_dry_run_publishes_nothing_and_out_keeps_the_pack(
    bundle: Bundle, rows: Path, store: str, tmp_path: Path
) -> None:
    before, out = live(store, bundle), tmp_path / "late.safetensors"
    report = run("late", "--data", rows, "--bundle", bundle.path, "--store", store, "--dry-run", "--out", out)
    assert live(store, bundle) == before
    assert not report["published"]
    assert version(out.read_bytes()) == report["version"]
    assert report["bytes"] == out.stat().st_size
    # Only what differs from the general pack is written.
    assert report["bytes"] < len(DomainPack.from_bytes(out.read_bytes(), bundle.base).to_bytes())


def test_a_general_pack_that_nothing_beats_stays_and_the_output_says_so(bundle: Bundle, rows: Path) -> None:
    arguments = ["add-domain", "late", "--data", str(rows), "--bundle", str(bundle.path), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--tuning.lr", "1e30", "--tuning.epochs", "2"])
    assert done.exit_code == 0
    assert "none of 2 epochs was better on validation than the general pack" in done.stdout
    report = run(*arguments[1:], "--tuning.lr", "1e30", "--tuning.epochs", "2")
    assert (report["stayed_general"], report["best_epoch"], report["epochs"]) == (True, 0, 2)
    general, pack = (report["quality"]["test"][name] for name in ("general", "pack"))
    assert general["auc"] == pack["auc"]
    assert pack["logloss"] < general["logloss"]  # calibrated on the domain's own rows


def test_time_splits_by_time_and_without_it_the_seed_shuffles(
    bundle: Bundle, rows: Path, tmp_path: Path
) -> None:
    pl.read_parquet(rows).drop("time").write_parquet(tmp_path / "late.parquet")
    arguments = ["late", "--data", tmp_path / "late.parquet", "--bundle", bundle.path, "--dry-run"]
    first, other = run(*arguments), run(*arguments, "--seed", 1)
    assert first["split_by"] == "shuffle"
    assert first["quality"]["test"]["general"]["auc"] != other["quality"]["test"]["general"]["auc"]


def test_items_that_the_bundle_does_not_know_are_counted(bundle: Bundle, rows: Path, tmp_path: Path) -> None:
    strange = pl.read_parquet(rows).with_columns(pl.lit("nobody").alias("item.id"))
    strange.write_parquet(tmp_path / "late.parquet")
    report = run("late", "--data", tmp_path / "late.parquet", "--bundle", bundle.path, "--dry-run")
    assert report["unknown_items"] == 1.0


@pytest.mark.parametrize("paradigm", ["mix", "finetune"])
def test_paradigms_that_own_little_and_everything(
    paradigm: str, tiny: Trained, rows: Path, tmp_path: Path
) -> None:
    bundle = build(train(tmp_path / "run", tiny.data, paradigm={"name": paradigm}), tmp_path / "bundles")
    out = tmp_path / "late.safetensors"
    report = run("late", "--data", rows, "--bundle", bundle.path, "--dry-run", "--out", out)
    pack = DomainPack.from_bytes(out.read_bytes(), bundle.base)
    assert pack.tensors.keys() == bundle.base.tensors.keys()
    general, own = (report["quality"]["test"][name] for name in ("general", "pack"))
    # A bias alone ranks as before.
    assert (own["auc"] == general["auc"]) == (paradigm == "mix")


def test_somebody_elses_promotion_in_the_meantime_is_not_undone(
    bundle: Bundle, rows: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Addition.__call__

    def raced(self: Addition, progress: Progress) -> Tuned:
        tuned = original(self, progress)
        url = open_store(store, bundle.manifest.bundle)
        asyncio.run(url.promote({"late": asyncio.run(url.put("late", b"another"))}))
        return tuned

    monkeypatch.setattr(Addition, "__call__", raced)
    addition = Addition("late", rows, bundle)
    with pytest.raises(Conflict):
        adding.add(addition, store, None, replace=False, progress=Progress(disable=True))
    assert live(store, bundle)["late"] == version(b"another")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["late", "--data", "ROWS"], "--store"),
        (["Late!", "--data", "ROWS", "--dry-run"], "is not a domain's name"),
        (["_general", "--data", "ROWS", "--dry-run"], "is not a domain's name"),
        (["late", "--data", "nothing.parquet", "--dry-run"], "nothing.parquet cannot be read"),
        (["mid", "--data", "ROWS", "--store", "STORE"], "--replace"),
        (["late", "--data", "ROWS", "--store", "redis://127.0.0.1:1/0"], ""),
        (["late", "--data", "ROWS", "--dry-run", "--dim", "3"], "the rest is the bundle's"),
        (["late", "--data", "ROWS", "--dry-run", "--tuning.lr", "-1"], "tuning.lr"),
        (["late", "--data", "ROWS", "--dry-run", "--tuning.rate", "1"], "tuning.rate"),
        (["late", "--data", "ROWS", "--dry-run", "--bundle", "nowhere"], "is not a bundle"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, bundle: Bundle, rows: Path, store: str
) -> None:
    places = {"ROWS": str(rows), "STORE": store}
    filled = ["--bundle", str(bundle.path), *(places.get(argument, argument) for argument in arguments)]
    command = [sys.executable, "-m", "export", "add-domain", *filled]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_remarks_on_the_file_go_to_stderr(bundle: Bundle, rows: Path, tmp_path: Path) -> None:
    given = pl.read_parquet(rows).drop("context.hour").with_columns(pl.lit(1).alias("weather"))
    given.write_parquet(tmp_path / "late.parquet")
    arguments = ["add-domain", "late", "--data", str(tmp_path / "late.parquet"), "--bundle"]
    done = CliRunner().invoke(app, [*arguments, str(bundle.path), "--dry-run", "--json"])
    assert "late.parquet: no column context.hour: unknown in every row\n" in done.stderr
    assert "late.parquet: ignored, as the model has no such field: weather\n" in done.stderr
    assert len(json.loads(done.stdout)["remarks"]) == 2


def test_rows_that_cannot_be_used_are_refused_before_anything_is_put(
    bundle: Bundle, rows: Path, store: str, tmp_path: Path
) -> None:
    pl.read_parquet(rows)[:50].write_parquet(tmp_path / "few.parquet")
    before = live(store, bundle)
    with pytest.raises(RunError, match="has 50 rows"):
        run("late", "--data", tmp_path / "few.parquet", "--bundle", bundle.path, "--store", store)
    assert live(store, bundle) == before

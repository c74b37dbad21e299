"""A domain that comes after CSAMP, when the language model is gone. Expected scores are torch's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.packs import named
from export.publish import publish
from export.weights import rebuild
from service.contract.bundle import Bundle
from service.contract.pack import GENERAL, DomainPack
from service.engines import ort
from service.stores._open import open_store
from tests.conftest import TINY, Trained, train
from tests.export.test_bundle import build
from training import newcomer
from training.data.sources import synthetic
from training.model import logits

ALIGN: dict[str, Any] = {"epochs": 1, "batch": 256, "n_prompts": 3, "live": 8, "lr": 5e-3}


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fourth domain of the users and items that the runs know."""
    domains = {**TINY["data"]["domains"], "late": 2000}
    source = synthetic.open(synthetic.Options(domains=domains, users=120, items=80))
    frame = source.interactions().frame.filter(pl.col("domain") == "late").drop("domain", "probability")
    path = tmp_path_factory.mktemp("rows") / "late.parquet"
    frame.write_parquet(path)
    return path


@pytest.fixture(scope="module", params=["shared_bottom", "mmoe"])
def csamp(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data_root: Path
) -> Trained:
    folder = tmp_path_factory.mktemp("run") / "run"
    backbone = {"name": "deepfm", "hidden": [64, 32]}  # with four units, no tower has much to choose from
    return train(folder, data_root, backbone=backbone, paradigm={"name": request.param}, align=ALIGN)


def test_a_domain_is_added_to_a_bottom_that_text_was_aligned_with(
    csamp: Trained, late: Path, tmp_path: Path
) -> None:
    bundle = build(csamp, tmp_path / "bundles")
    url = f"directory:{tmp_path / 'store'}"
    store = open_store(url, bundle.manifest.bundle)
    asyncio.run(publish(bundle, store))
    before = {domain: which or "" for domain, which in asyncio.run(store.live()).items()}
    bytes_before = {domain: asyncio.run(store.fetch(domain, which)) for domain, which in before.items()}
    files = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}

    arguments = ["add-domain", "late", "--data", late, "--bundle", bundle.path, "--store", url]
    arguments += ["--tuning.lr", "0.02", "--json"]
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert not report["stayed_general"]
    assert report["quality"]["valid"]["pack"]["auc"] > report["quality"]["valid"]["general"]["auc"]

    after = {domain: which or "" for domain, which in asyncio.run(store.live()).items()}
    assert after == {**before, "late": report["version"]}
    for domain, data in bytes_before.items():
        assert asyncio.run(store.fetch(domain, after[domain])) == data
    assert {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()} == files

    pack = DomainPack.from_bytes(asyncio.run(store.fetch("late", report["version"])), bundle.base)
    general = DomainPack.from_bytes(dict(bundle.packs())[GENERAL])
    owned = {name for name in pack.tensors if not np.array_equal(pack.tensors[name], general.tensors[name])}
    assert owned == {*csamp.model.paradigm.owned}
    assert all(name.startswith("own.") for name in owned)  # a tower, and a gate where there are experts
    _scores_are_torchs(bundle, pack, late)


def _scores_are_torchs(bundle: Bundle, pack: DomainPack, late: Path) -> None:
    held = newcomer.read(late, bundle.schema, bundle.items, 0).parts["test"].rows
    tensors = {name: torch.from_numpy(np.array(tensor)) for name, tensor in pack.tensors.items()}
    expected = logits(rebuild(bundle).servable, tensors, held).numpy()
    engine = ort.open(bundle, threads=1)
    handle = engine.load(pack)
    rows = [named(held[at : at + 1].arrays, bundle.manifest.inputs) for at in range(len(held))]
    found = [engine.score(row, handle)[0] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_of_the_language_model_is_in_the_bundle(csamp: Trained, tmp_path: Path) -> None:
    """So whatever a newcomer is tuned with, texts and prompts have no part in it."""
    servable = rebuild(build(csamp, tmp_path)).servable
    names = {name for name, _ in servable.named_parameters()}
    assert not {name for name in names if any(part in name for part in ("prompts", "reader", "projection"))}

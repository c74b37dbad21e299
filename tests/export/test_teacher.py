"""Uni-CTR from rows to answers over HTTP, with a tiny language model. Expected scores are torch's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.packs import named
from export.publish import publish
from export.weights import rebuild
from loadtest.replay import requests
from service.contract.bundle import Bundle
from service.contract.errors import RunError
from service.contract.pack import GENERAL, DomainPack
from service.stores._open import open_store
from tests.conftest import Trained, train
from tests.service.conftest import JSON, Service, running
from tests.service.waiting import eventually
from training import newcomer
from training.data.batches import Rows
from training.data.sources import prompts
from training.metrics import auc
from training.model import logits

SOURCE: dict[str, Any] = {"name": "synthetic", "domains": {"a": 1200, "b": 600}, "users": 60, "items": 40}
LATE = {**SOURCE, "domains": {**SOURCE["domains"], "late": 600}}
LENGTHS = {"length": 40, "item_length": 16}
JOINT = {"epochs": 2, "batch": 64, "lr": 2e-3, "patience": 2}
TEACHER: dict[str, Any] = {
    "name": "teacher",
    "data": {"name": "prompts", **LENGTHS, "of": SOURCE},
    "paradigm": {"name": "training.teachers.unictr", "model": "tiny", "tower": [16, 8]},
    "general_share": 1.0,
    "joint": JOINT,
    "tuning": JOINT,
}
STRANGER = "item-of-tomorrow"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where tiny language models are made."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache / "mdctr"


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    return train(tmp_path_factory.mktemp("run") / "teacher", data_root, **TEACHER)


def build(trained: Trained, out: Path) -> Bundle:
    arguments = ["build", str(trained.folder), "--data", str(trained.data), "--out", str(out)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return Bundle.open(Path(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(trained, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def store(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"directory:{tmp_path_factory.mktemp('store')}"
    asyncio.run(publish(bundle, open_store(url, bundle.manifest.bundle)))
    return url


@pytest.fixture(scope="module")
def service(bundle: Bundle, store: str) -> Iterator[Service]:
    with running(bundle, store, unknown_domain="general") as service:
        eventually(service.ready)
        yield service


@pytest.fixture(scope="module")
def late(models: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third domain's rows, in the tokens of the model that was trained."""
    (model,) = models.glob("tiny-*")
    options = prompts.Options.model_validate({**LENGTHS, "of": LATE, "model": str(model)})
    frame = prompts.open(options).interactions().frame.filter(pl.col("domain") == "late")
    path = tmp_path_factory.mktemp("rows") / "late.parquet"
    frame.select("label", "time", "user.id", "item.id", "context.tokens").write_parquet(path)
    assert trained.model.domains == ("a", "b")
    return path


def replay(service: Service, bundle: Bundle, frame: pl.DataFrame, domain: str) -> npt.NDArray[np.float64]:
    """Probabilities (n,) of the rows of a frame, over HTTP."""
    found = np.full(frame.height, np.nan)
    for each in requests(frame, bundle.schema, domain, 1000):
        answer = service.client.post(each.path, content=each.body, headers=JSON)
        assert answer.status_code == 200, answer.text
        found[each.rows] = answer.json()["probabilities"]
    return found


def held(trained: Trained, domain: str) -> pl.DataFrame:
    return trained.prepared.split("test").filter(pl.col("domain") == domain)


def expected(trained: Trained, frame: pl.DataFrame, domain: str | None) -> npt.NDArray[np.float64]:
    model = trained.model
    rows = Rows.encode(frame, model.schema, model.domains)
    return np.asarray(
        1 / (1 + np.exp(-model.calibrated(model.logits(rows, domain).numpy(), domain))), np.float64
    )


def test_a_teacher_is_built_as_any_run(trained: Trained, bundle: Bundle) -> None:
    (parity,) = bundle.manifest.parity
    assert (parity.engine, parity.beyond_float32) == ("ort", 0)
    assert parity.max_abs_diff < 1e-5
    assert parity.cases == 3 * 11  # of three packs, with five sizes of random rows
    widths = {spec.name: spec.shape[1] for spec in bundle.manifest.inputs if spec.source == "schema"}
    assert widths == {"request.ids": 40, "item.ids": 16}
    owned = {spec.name for spec in bundle.manifest.inputs if spec.source == "pack"}
    assert all(name.startswith("pack.network.") for name in owned)
    assert "| general | " in (bundle.path / "CARD.md").read_text()
    items = trained.prepared.items()
    tokens = bundle.items.inputs.take(bundle.items.rows(items["item.id"].to_list()[:3])).ids
    first = bundle.schema.slots["item.tokens"].offset + 1
    for row, wanted in zip(tokens, items["item.tokens"].to_list(), strict=False):
        assert (row[row >= 0] - first).tolist() == wanted


def test_packs_are_as_many_networks(bundle: Bundle) -> None:
    packs = {name: DomainPack.from_bytes(data, bundle.base) for name, data in bundle.packs()}
    assert [*packs] == [GENERAL, "a", "b"]
    for one, other in ((GENERAL, "a"), (GENERAL, "b"), ("a", "b")):
        differ = [
            name
            for name, tensor in packs[one].tensors.items()
            if not np.array_equal(tensor, packs[other].tensors[name])
        ]
        assert {"network.tower.0.weight", "network.gate.query.weight"} <= {*differ}
        assert any(name.startswith("network.ladders.") for name in differ)


@pytest.mark.parametrize("domain", ["a", "b"])
def test_answers_are_torchs(trained: Trained, bundle: Bundle, service: Service, domain: str) -> None:
    frame = held(trained, domain)
    found = replay(service, bundle, frame, domain)
    np.testing.assert_allclose(found, expected(trained, frame, domain), atol=1e-5)
    other = expected(trained, frame, "b" if domain == "a" else "a")
    assert np.abs(found - other).max() > 0.01


def test_an_unknown_domain_is_answered_by_the_general_network(
    trained: Trained, bundle: Bundle, service: Service
) -> None:
    frame = held(trained, "a")
    found = replay(service, bundle, frame, "nowhere")
    np.testing.assert_allclose(found, expected(trained, frame, None), atol=1e-5)


def test_a_new_item_is_read_by_its_words(trained: Trained, service: Service) -> None:
    """No id has a part in it, so a stranger with a known item's words has that item's score."""
    asker = held(trained, "a")["context.tokens"][0].to_list()
    items = trained.prepared.items()
    known, words = items["item.id"].to_list()[:5], items["item.tokens"].to_list()[:5]

    def ask(ids: list[Any], **body: Any) -> list[float]:
        answer = service.rank("a", ids=ids, **body)
        assert answer.status_code == 200, answer.text
        found: list[float] = answer.json()["probabilities"]
        return found

    strangers = [STRANGER] * 5
    told = ask(known, context={"tokens": asker})
    assert len({*told}) == 5
    found = ask(strangers, context={"tokens": asker}, items={"tokens": words})
    assert found == pytest.approx(told, abs=1e-6)
    assert len({*ask(strangers, context={"tokens": asker})}) == 1
    nothing = ask(strangers[:1])  # neither who asks nor what is offered
    assert 0 < nothing[0] < 1


def test_a_domain_is_added_and_the_others_answer_bit_for_bit_as_before(
    trained: Trained, bundle: Bundle, store: str, service: Service, late: Path
) -> None:
    frames = {domain: held(trained, domain) for domain in ("a", "b")}
    before = {domain: replay(service, bundle, frame, domain) for domain, frame in frames.items()}
    rows = pl.read_parquet(late)
    general = replay(service, bundle, rows, "late")
    arguments = ["add-domain", "late", "--data", late, "--bundle", bundle.path, "--store", store]
    arguments += ["--tuning.epochs", 3, "--json"]
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert not report["stayed_general"]
    assert report["rows"] == {"train": 480, "valid": 60, "test": 60}
    assert report["unknown_items"] == 0

    def added() -> bool:
        known = service.client.get("/v1/domains").json()["domains"]
        return any(state["domain"] == "late" and state["serving"] == report["version"] for state in known)

    eventually(added)
    for domain, frame in frames.items():
        assert np.array_equal(replay(service, bundle, frame, domain), before[domain])
    found = replay(service, bundle, rows, "late")
    assert np.abs(found - general).max() > 0.01
    data = asyncio.run(open_store(store, bundle.manifest.bundle).fetch("late", report["version"]))
    pack = DomainPack.from_bytes(data, bundle.base)
    tensors = {name: torch.from_numpy(np.array(tensor)) for name, tensor in pack.tensors.items()}
    last = newcomer.read(late, bundle.schema, bundle.items, 0).parts["test"].rows
    a, b = pack.calibration.tolist()
    wanted = (a * logits(rebuild(bundle).servable, tensors, last) + b).sigmoid().numpy()
    order = np.argsort(rows["time"].to_numpy(), kind="stable")[-len(last) :]
    np.testing.assert_allclose(found[np.sort(order)], wanted, atol=1e-5)


def test_in_float16_it_ranks_as_in_float32(trained: Trained, bundle: Bundle, tmp_path: Path) -> None:
    """Over all rows: of a hundred test rows one pair's order is a thousandth of AUC."""
    arguments = ["half-graph", str(bundle.path), "--out", str(tmp_path / "half")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    graph = Path(done.stdout.strip())
    with pytest.raises(RunError, match="exists"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    sizes = [(folder / "graph.onnx.data").stat().st_size for folder in (graph.parent, bundle.path)]
    assert sizes[0] < 0.52 * sizes[1]
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    assert {each.type for each in session.get_inputs()} == {"tensor(int32)", "tensor(float)"}
    packs = {name: DomainPack.from_bytes(data, bundle.base) for name, data in bundle.packs()}
    for at, domain in enumerate(trained.model.domains):
        pack = {f"pack.{name}": np.array(tensor) for name, tensor in packs[domain].tensors.items()}
        parts = [trained.rows(split).of(at) for split in ("train", "valid", "test")]
        rows = [part[i : i + 1] for part in parts for i in range(len(part))]
        inputs = bundle.manifest.inputs
        half = [session.run(None, {**named(row.arrays, inputs), **pack})[0][0] for row in rows]
        whole = torch.cat([trained.model.logits(part, domain) for part in parts]).numpy()
        label = torch.cat([part.label for part in parts]).numpy()
        np.testing.assert_allclose(half, whole, atol=0.01)
        assert np.abs(half - whole).max() > 1e-6  # it is another arithmetic
        assert auc(np.array(half), label) == pytest.approx(auc(whole, label), abs=1e-3)


def test_lora_is_merged_into_the_graph_and_a_bundle_can_be_tuned(
    models: Path, trained: Trained, late: Path, tmp_path: Path
) -> None:
    (model,) = models.glob("tiny-*")
    paradigm = {**TEACHER["paradigm"], "model": str(model), "rank": 2}
    data = {**TEACHER["data"], "model": str(model)}
    adapted = train(tmp_path / "run", trained.data, **{**TEACHER, "paradigm": paradigm, "data": data})
    assert any(".lora_" in name for name in adapted.model.paradigm.state_dict())
    bundle = build(adapted, tmp_path / "bundles")
    assert bundle.manifest.parity[0].max_abs_diff < 1e-5
    arguments = ["add-domain", "late", "--data", late, "--bundle", bundle.path, "--dry-run", "--json"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--tuning.epochs", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["quality"]["test"]["pack"]["auc"] is not None

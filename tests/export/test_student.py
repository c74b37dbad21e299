"""A student is served like any other model: its teacher stays behind. Expected scores are torch's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from export.bundle import build
from export.publish import publish
from loadtest.replay import requests
from service.contract.bundle import Bundle
from service.stores._open import open_store
from tests.conftest import Trained, train
from tests.service.conftest import JSON, Service, running
from tests.service.waiting import eventually
from training import checkpoint
from training.data.batches import Rows

SOURCE: dict[str, Any] = {"name": "synthetic", "domains": {"a": 2000, "b": 1000}, "users": 60, "items": 60}
STUDENT: dict[str, Any] = {
    "data": {"name": "text_vectors", "size": 8, "of": SOURCE},
    "joint": {"epochs": 4, "batch": 256, "lr": 5e-3, "patience": 3},
    "distil": {
        "size": 4,
        "teacher": {
            "name": "teacher",
            "data": {"name": "prompts", "length": 40, "item_length": 16, "of": SOURCE},
            "paradigm": {"name": "training.teachers.unictr", "model": "tiny", "tower": [8], "every": 4},
            "general_share": 1.0,
            "joint": {"epochs": 1, "batch": 64, "lr": 2e-3},
        },
    },
}
STRANGER = "item-of-tomorrow"
UNKNOWN = ("item.category", "item.brand", "item.price", "item.tags")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Iterator[Trained]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield train(tmp_path_factory.mktemp("run") / "student", data_root, **STUDENT)


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    return build(trained.recipe, trained.prepared, trained.model, metrics, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    url = f"directory:{tmp_path_factory.mktemp('store')}"
    asyncio.run(publish(bundle, open_store(url, bundle.manifest.bundle)))
    with running(bundle, url) as service:
        eventually(service.ready)
        yield service


def expected(trained: Trained, frame: pl.DataFrame, domain: str) -> npt.NDArray[Any]:
    model = trained.model
    logit = model.logits(Rows.encode(frame, model.schema, model.domains), domain).numpy()
    return np.asarray(1 / (1 + np.exp(-model.calibrated(logit, domain))))


def test_nothing_of_the_teacher_is_in_the_bundle(trained: Trained, bundle: Bundle) -> None:
    assert {spec.name for spec in bundle.manifest.inputs if spec.source == "schema"} == {
        "request.ids",
        "request.numbers",
        "item.ids",
        "item.numbers",
    }
    assert bundle.manifest.item_halves is not None
    teacher = next(trained.folder.parent.glob("teachers/*/weights.safetensors"))
    assert sum(path.stat().st_size for path in bundle.path.glob("*")) < teacher.stat().st_size


@pytest.mark.parametrize("domain", ["a", "b"])
def test_answers_are_torchs(trained: Trained, bundle: Bundle, service: Service, domain: str) -> None:
    frame = trained.prepared.split("test").filter(pl.col("domain") == domain)
    found = np.full(frame.height, np.nan)
    for each in requests(frame, bundle.schema, domain, 1000):
        answer = service.client.post(each.path, content=each.body, headers=JSON)
        assert answer.status_code == 200, answer.text
        found[each.rows] = answer.json()["probabilities"]
    np.testing.assert_allclose(found, expected(trained, frame, domain), atol=1e-5)


def test_a_new_item_ranks_by_the_vector_of_its_text(trained: Trained, service: Service) -> None:
    """Strangers of which nothing but a known item's vector is sent."""
    items = trained.prepared.items()
    asker = trained.prepared.split("test").filter(pl.col("domain") == "a")[:1]
    user, context = (
        {key.split(".")[1]: asker[key][0] for key in trained.model.schema.slots if key.startswith(owner)}
        for owner in ("user.", "context.")
    )

    def ask(**body: Any) -> npt.NDArray[Any]:
        answer = service.rank("a", user=user, context=context, **body)
        assert answer.status_code == 200, answer.text
        return np.array(answer.json()["probabilities"])

    strangers = [STRANGER] * items.height
    blind, found = ask(ids=strangers), ask(ids=strangers, items={"text": items["item.text"].to_list()})
    assert np.ptp(blind) == 0
    assert np.ptp(found) > 0.01
    nothing = (pl.lit(None, items[key].dtype).alias(key) for key in UNKNOWN)
    new = items.select(pl.lit(STRANGER).alias("item.id"), "item.text", *nothing)
    frame = asker.drop(new.columns).join(new, how="cross")
    np.testing.assert_allclose(found, expected(trained, frame, "a"), atol=1e-5)
    known = ask(ids=items["item.id"].to_list())
    assert np.corrcoef(found, known)[0, 1] > 0.3

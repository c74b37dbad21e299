"""Expected numbers are worked out by hand from the ids, weights and embeddings set here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.bundle import build as build_bundle
from service.contract.field import Field
from service.contract.hashing import bucket
from service.contract.schema import FeatureSchema
from tests.conftest import TINY, Trained, train
from training import checkpoint
from training.nn import corrections
from training.nn.corrections import EmbeddingWeights, SharedWeights

# Rows: user.id 0-2, user.age 3, item.id 4-6.
SCHEMA = FeatureSchema(
    fields=(
        Field(name="id", owner="user", kind="vocabulary", values=("u", "v")),
        Field(name="age", owner="user", kind="number"),
        Field(name="id", owner="item", kind="vocabulary", values=("a", "b")),
    )
)
ARRAYS = (
    torch.tensor([[2]], dtype=torch.int32),
    torch.tensor([[0.5]]),
    torch.tensor([[5], [4]], dtype=torch.int32),
    torch.zeros(2, 0),
)
NOTHING = torch.zeros(1, 2, 3), torch.zeros(2, 1, 3)


@pytest.mark.parametrize("form", ["user", "hashed", "embedding"])
def test_it_starts_as_nothing_and_every_weight_can_learn(form: corrections.Form) -> None:
    correction = corrections.build(form, SCHEMA, 3, size=2)
    request, item = torch.randn(1, 2, 3), torch.randn(2, 1, 3)
    found = correction(ARRAYS, request, item)
    assert found.tolist() == [0, 0]
    (found * torch.tensor([1.0, 2.0])).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in correction.parameters())


def test_the_users_part_has_the_users_rows_only() -> None:
    correction = corrections.build("user", SCHEMA, 3, size=1)
    assert isinstance(correction, SharedWeights)
    assert correction.weight.shape == (4,)
    with torch.no_grad():
        correction.weight.copy_(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert correction(ARRAYS, *NOTHING).tolist() == [100 + 500, 100 + 500]  # user v, and age 0.5


def test_hashed_rows_share_the_weight_of_their_bucket() -> None:
    correction = corrections.build("hashed", SCHEMA, 3, size=3)
    with torch.no_grad():
        next(correction.parameters()).copy_(torch.tensor([1.0, 10.0, 100.0]))
    weight = [[1.0, 10.0, 100.0][bucket(row, 3)] for row in range(SCHEMA.rows)]
    shared = weight[2] + 0.5 * weight[3]
    assert correction(ARRAYS, *NOTHING).tolist() == [shared + weight[5], shared + weight[4]]


def test_embedding_weights_are_dot_products_with_the_fields() -> None:
    correction = corrections.build("embedding", SCHEMA, 2, size=1)
    assert isinstance(correction, EmbeddingWeights)
    with torch.no_grad():
        correction.request.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        correction.item.copy_(torch.tensor([[5.0, 6.0]]))
    request, item = torch.ones(1, 2, 2), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert correction(ARRAYS, request, item).tolist() == [10 + 5, 10 + 6]


@pytest.mark.parametrize("form", ["user", "hashed", "embedding"])
def test_plate_tunes_and_ships_only_the_correction_and_serves_it(
    form: str, data_root: Path, tmp_path: Path
) -> None:
    options = {**TINY["paradigm"], "tunes": ["first_order"], "first_order": form, "hash_size": 32}
    trained: Trained = train(tmp_path / "run", data_root, paradigm=options)
    owned = trained.model.paradigm.owned
    assert "first_order.weight" not in owned
    assert {name.split(".")[0] for name in owned} == {"correction", "domain_prompt", "first_order"}
    moved = [name for name in owned if name.startswith("correction.")]
    assert any(trained.model.pack(domain)[name].any() for domain in trained.model.domains for name in moved)
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    # The export refuses an engine that is not within 1e-5 of torch, for every pack.
    bundle = build_bundle(trained.recipe, trained.prepared, trained.model, metrics, tmp_path / "bundles")
    assert bundle.manifest.parity[0].max_abs_diff < 1e-5

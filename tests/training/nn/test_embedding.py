"""Expected numbers are worked out by hand from a table whose row v is (v, 10 v)."""

from __future__ import annotations

import torch

from service.contract.schema import FeatureSchema, Field
from training.nn.embedding import Embedding, FirstOrder

# Rows: user.id 0-2, user.age 3, item.id 4-6, item.tags 7-9, item.price 10.
SCHEMA = FeatureSchema(
    fields=(
        Field(name="id", owner="user", kind="vocabulary", values=("u", "v")),
        Field(name="age", owner="user", kind="number"),
        Field(name="id", owner="item", kind="vocabulary", values=("a", "b")),
        Field(name="tags", owner="item", kind="vocabulary", values=("s", "t"), multiple=3),
        Field(name="price", owner="item", kind="number"),
    )
)
ARRAYS = (
    torch.tensor([[2]], dtype=torch.int32),
    torch.tensor([[0.5]]),
    torch.tensor([[5, 8, 9, -1], [4, -1, -1, -1]], dtype=torch.int32),
    torch.tensor([[2.0], [0.0]]),
)


def test_embedding_looks_up_averages_and_scales() -> None:
    embedding = Embedding(SCHEMA, 2)
    with torch.no_grad():
        embedding.table.copy_(torch.arange(11.0)[:, None] * torch.tensor([1.0, 10.0]))
    request, item = embedding(*ARRAYS)
    assert request.tolist() == [[[2, 20], [1.5, 15]]]
    # tags: the mean of rows 8 and 9; an empty list is zero; price 2 scales row 10.
    assert item.tolist() == [[[5, 50], [8.5, 85], [20, 200]], [[4, 40], [0, 0], [0, 0]]]


def test_first_order_sums_weights_and_starts_at_zero() -> None:
    first_order = FirstOrder(SCHEMA)
    assert not first_order.weight.any()
    with torch.no_grad():
        first_order.weight.copy_(torch.arange(11.0))
        first_order.bias.fill_(100.0)
    assert first_order(*ARRAYS).tolist() == [100 + 2 + 1.5 + 5 + 8.5 + 20, 100 + 2 + 1.5 + 4]


def test_rows_not_looked_up_get_no_gradient() -> None:
    embedding = Embedding(SCHEMA, 2)
    sum(part.sum() for part in embedding(*ARRAYS)).backward()
    assert embedding.table.grad is not None
    touched = embedding.table.grad.abs().sum(1) > 0
    # Row 0 is what padding is clamped to; it must not learn from padding.
    assert touched.nonzero()[:, 0].tolist() == [2, 3, 4, 5, 8, 9, 10]

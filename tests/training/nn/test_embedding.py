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
    # Row 0 is what padding is clamped to; it must not learn from padding.
    assert embedding.table.grad[:, 0].tolist() == [0, 0, 1, 0.5, 1, 1, 0, 0, 0.5, 0.5, 2]
    assert torch.equal(embedding.table.grad[:, 0], embedding.table.grad[:, 1])


def test_gradients_of_a_row_that_is_looked_up_several_times_add_up() -> None:
    first_order = FirstOrder(SCHEMA)
    request_ids, request_numbers, item_ids, item_numbers = ARRAYS
    again = torch.cat([item_ids, item_ids[:1]]), torch.cat([item_numbers, item_numbers[:1]])
    logit = first_order(request_ids, request_numbers, *again)
    (logit * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    # The request is in all three rows, the first item in those of 1 and of 100.
    expected = [0, 0, 111, 55.5, 10, 101, 0, 0, 50.5, 50.5, 202]
    assert first_order.weight.grad is not None
    assert first_order.weight.grad.tolist() == expected

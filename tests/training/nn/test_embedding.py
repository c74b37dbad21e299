"""Expected numbers are worked out by hand from a table whose row v is (v, 10 v)."""

from __future__ import annotations

import torch
from torch import nn

from service.contract.field import Field
from service.contract.schema import FeatureSchema
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


# Rows: user.mood 0-1, user.id 2-4, item.price 5, item.text 6-8, item.id 9-11, item.age 12.
VECTORS = FeatureSchema(
    fields=(
        Field(name="mood", owner="user", kind="vector", size=2),
        Field(name="id", owner="user", kind="vocabulary", values=("u", "v")),
        Field(name="price", owner="item", kind="number"),
        Field(name="text", owner="item", kind="vector", size=3),
        Field(name="id", owner="item", kind="vocabulary", values=("a", "b")),
        Field(name="age", owner="item", kind="number"),
    )
)
OF_VECTORS = (
    torch.tensor([[4]], dtype=torch.int32),
    torch.tensor([[3.0, -1.0]]),
    torch.tensor([[10], [11]], dtype=torch.int32),
    torch.tensor([[2.0, 1.0, 0.5, -1.0, 4.0], [0.0, 0.0, 0.0, 0.0, 1.0]]),
)


def test_a_vector_is_one_field_and_the_sum_of_its_rows_scaled() -> None:
    embedding = Embedding(VECTORS, 2)
    assert embedding.request.keys == ["user.id", "user.mood"]
    assert embedding.item.keys == ["item.id", "item.price", "item.text", "item.age"]
    with torch.no_grad():
        embedding.table.copy_(torch.arange(13.0)[:, None] * torch.tensor([1.0, 10.0]))
    request, item = embedding(*OF_VECTORS)
    # mood: 3 * 0 - 1 * 1. text: 1 * 6 + 0.5 * 7 - 1 * 8; without one, zero.
    assert request.tolist() == [[[4, 40], [-1, -10]]]
    assert item.tolist() == [
        [[10, 100], [10, 100], [1.5, 15], [48, 480]],
        [[11, 110], [0, 0], [0, 0], [12, 120]],
    ]
    first_order = FirstOrder(VECTORS)
    with torch.no_grad():
        first_order.weight.copy_(torch.arange(13.0))
    assert first_order(*OF_VECTORS).tolist() == [3 + 10 + 10 + 1.5 + 48, 3 + 11 + 12]


def test_a_vector_of_size_1_is_a_number() -> None:
    vectors, numbers = (
        FeatureSchema(
            fields=(
                Field(name="age", owner="user", kind="number"),
                *(Field.model_validate({"name": name, "owner": "item", **kind}) for name in ("x", "y")),
            )
        )
        for kind in ({"kind": "vector", "size": 1}, {"kind": "number"})
    )
    torch.manual_seed(0)
    one, other = Embedding(vectors, 3), Embedding(numbers, 3)
    other.load_state_dict(one.state_dict())
    empty = torch.zeros(1, 0, dtype=torch.int32)
    arrays = (empty, torch.randn(1, 1), empty.expand(5, -1), torch.randn(5, 2))
    for found, expected in zip(one(*arrays), other(*arrays), strict=True):
        assert torch.equal(found, expected)


def test_rows_of_a_vector_learn_as_a_linear_layer_does() -> None:
    """Against `nn.Linear` without a bias, whose weight is (K, size)."""
    torch.manual_seed(0)
    embedding, layer = Embedding(VECTORS, 4), nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(embedding.table[6:9].T)
    numbers, weight = torch.randn(50, 5), torch.randn(50, 4)
    ids = torch.full((50, 1), 9, dtype=torch.int32)
    text = embedding(*OF_VECTORS[:2], ids, numbers)[1][:, 2]
    expected = layer(numbers[:, 1:4])
    torch.testing.assert_close(text, expected)
    (text.sigmoid() * weight).sum().backward()
    (expected.sigmoid() * weight).sum().backward()
    assert embedding.table.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(embedding.table.grad[6:9], layer.weight.grad.T)
    assert not embedding.table.grad[:6].any()
    assert not embedding.table.grad[9:].any()


def test_the_gradient_is_that_of_finite_differences() -> None:
    embedding = Embedding(VECTORS, 2).double()
    request_ids, request_numbers, item_ids, item_numbers = OF_VECTORS
    numbers = (request_numbers.double(), item_numbers.double())

    def look_up(table: torch.Tensor, mood: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return embedding.look_up(table, request_ids, mood, item_ids, item)

    given = [each.detach().clone().requires_grad_() for each in (embedding.table, *numbers)]
    assert torch.autograd.gradcheck(look_up, given)

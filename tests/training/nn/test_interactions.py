"""The two-scope forms against the plain formulas, written out over all fields at once."""

from __future__ import annotations

import itertools

import pytest
import torch

from training.nn.interactions import Dropout, ScopedLinear, ScopedMLP, fm, hidden_layers, no_logit


@pytest.fixture
def fields() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, 4, generator=generator), torch.randn(5, 2, 4, generator=generator)


def test_fm_is_the_sum_over_pairs_of_fields(fields: tuple[torch.Tensor, torch.Tensor]) -> None:
    request, item = fields
    found = fm(request, item)
    for row in range(5):
        vectors = [*request[0], *item[row]]
        expected = sum(float(a @ b) for a, b in itertools.combinations(vectors, 2))  # Rendle 2010, eq. 1
        assert found[row].item() == pytest.approx(expected, abs=1e-5)


def test_fm_with_one_request_row_equals_the_row_repeated(fields: tuple[torch.Tensor, torch.Tensor]) -> None:
    request, item = fields
    torch.testing.assert_close(fm(request, item), fm(request.expand(5, -1, -1), item))


def test_scoped_linear_is_one_linear_over_both() -> None:
    layer = ScopedLinear(3, 2, 4)
    request, item = torch.randn(1, 3), torch.randn(6, 2)
    whole = torch.nn.Linear(5, 4)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([layer.request.weight, layer.item.weight], 1))
        whole.bias.copy_(layer.request.bias)
    torch.testing.assert_close(layer(request, item), whole(torch.cat([request.expand(6, -1), item], 1)))


def test_scoped_linear_without_bias_is_0_at_0() -> None:
    assert not ScopedLinear(3, 2, 4, bias=False)(torch.zeros(1, 3), torch.zeros(6, 2)).any()


def test_hidden_layers_are_those_of_the_scoped_mlp() -> None:
    scoped, plain = (
        ScopedMLP(3, 2, (4, 3), "batch", 0.5).eval(),
        hidden_layers(5, (4, 3), "batch", 0.5).eval(),
    )
    weight, bias, *rest = plain.parameters()
    with torch.no_grad():
        weight.copy_(torch.cat([scoped.first.request.weight, scoped.first.item.weight], 1))
        bias.copy_(scoped.first.request.bias)
        for parameter, same in zip(rest, scoped.rest.parameters(), strict=True):
            parameter.copy_(same)
    request, item = torch.randn(6, 3), torch.randn(6, 2)
    torch.testing.assert_close(scoped(request, item), plain(torch.cat([request, item], 1)))


def test_no_logit_is_a_zero_a_row() -> None:
    assert no_logit(torch.randn(5, 3)).tolist() == [0] * 5


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_a_row_does_not_depend_on_its_neighbours(norm: str) -> None:
    mlp = ScopedMLP(3, 2, (4, 3), norm, 0.5).eval()  # type: ignore[arg-type]
    request, item = torch.randn(1, 3), torch.randn(6, 2)
    changed = item.clone()
    changed[1:] = 7.0
    assert torch.equal(mlp(request, item)[0], mlp(request, changed)[0])


def test_dropout_zeroes_its_share_keeps_the_mean_and_does_nothing_in_eval_mode() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.2), torch.ones(100_000)
    found = layer(x)
    assert found.unique().tolist() == pytest.approx([0, 1.25])
    assert (found == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert layer.eval()(x) is x

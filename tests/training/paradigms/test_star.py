"""Against the formula, written out in plain tensors, and against torch's own BatchNorm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.paradigms.making import DOMAINS, make, shared_part, stir
from training.data.batches import Rows
from training.paradigms.star import MOMENTUM, Norm


def star(root: Path, *, stirred: bool = True) -> tuple[Any, Rows]:
    paradigm, rows = make("star", root, hidden=[6, 5])
    if stirred:
        stir(paradigm)
    return paradigm, rows


def of(paradigm: Any, domain: int, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """The star over x (n, N): W (.) W_d, b + b_d, and one domain's statistics in front."""
    centre, point = paradigm.centre, paradigm.points[domain]
    scale, shift = centre.scale * (1 + point.norm.scale), centre.shift + point.norm.shift
    x = scale * (x - mean) / (var + 1e-5).sqrt() + shift
    for at, layer in enumerate(centre.layers):
        weight = layer.weight * (1 + point.factor[at])
        x = x @ weight.T + layer.bias + point.bias[at]
        x = x.clamp(min=0) if at < 2 else x
    return x[:, 0]


def auxiliary(paradigm: Any, rows: Rows) -> Tensor:
    first_order, request, item = shared_part(paradigm, rows)
    prompt = torch.stack([paradigm.points[int(d)].prompt.row for d in rows.domain])
    hidden, direct = paradigm.body.backbone(torch.cat([prompt, request], 1), item)
    logit: Tensor = first_order + direct + paradigm.body.head(hidden)[:, 0]
    return logit


def test_logit_is_auxiliary_network_and_star_by_the_domains_moving_statistics(data_root: Path) -> None:
    paradigm, rows = star(data_root)
    with torch.inference_mode():
        for at, point in enumerate(paradigm.points):
            point.norm.mean.fill_(0.1 * at)
            point.norm.var.fill_(0.5 + at)
        _, request, item = shared_part(paradigm, rows)
        x = torch.cat([request.flatten(1), item.flatten(1)], 1)
        expected = auxiliary(paradigm, rows)
        for at in range(DOMAINS):
            norm = paradigm.points[at].norm
            own = rows.domain == at
            expected[own] += of(paradigm, at, x[own], norm.mean, norm.var)
        torch.testing.assert_close(paradigm(rows), expected, rtol=1e-4, atol=1e-5)


def test_in_training_statistics_are_of_the_rows_of_the_domain_in_the_batch(data_root: Path) -> None:
    paradigm, rows = star(data_root)
    _, request, item = shared_part(paradigm, rows)
    x = torch.cat([request.flatten(1), item.flatten(1)], 1)
    paradigm.eval()
    expected = auxiliary(paradigm, rows)
    for at in range(DOMAINS):
        own = rows.domain == at
        expected[own] += of(paradigm, at, x[own], x[own].mean(0), x[own].var(0, correction=0))
    paradigm.points.train()  # but not the backbone, whose BatchNorm sees all rows
    torch.testing.assert_close(paradigm(rows), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(paradigm.points[1].norm.mean, x[64:128].mean(0))
    assert not paradigm.points[DOMAINS].norm.mean.any()  # no row was the general domain's


def test_moving_statistics_are_torchs_with_the_mean_of_all_batches_until_there_are_many() -> None:
    norm, theirs = Norm(3), nn.BatchNorm1d(3, momentum=None, affine=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = 2 + torch.randn(16, 3, generator=generator)
        torch.testing.assert_close(norm(x), theirs(x))
    torch.testing.assert_close(norm.mean, theirs.running_mean)
    torch.testing.assert_close(norm.var, theirs.running_var)
    torch.testing.assert_close(norm.eval()(x), theirs.eval()(x))
    norm.train().batches.fill_(1000)
    before = norm.mean.clone()
    norm(x)
    torch.testing.assert_close(norm.mean, (1 - MOMENTUM) * before + MOMENTUM * x.mean(0))


def test_one_row_has_no_statistics_and_leaves_the_moving_ones(data_root: Path) -> None:
    norm = Norm(3)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(norm(x), x, rtol=1e-4, atol=0)
    assert int(norm.batches) == 0


def test_a_pack_holds_products_with_the_normalisation_folded_in(data_root: Path) -> None:
    """The first layer by hand: W (.) W_d times the scale, and the rest of the normalisation in the bias."""
    paradigm, rows = star(data_root)
    paradigm.train()(rows)
    point = paradigm.eval().points[1]
    pack = {name.removeprefix("own.star."): tensor for name, tensor in paradigm.pack(1).items()}
    layer, norm = paradigm.centre.layers[0], point.norm
    with torch.no_grad():
        weight = layer.weight * (1 + point.factor[0])
        scale = paradigm.centre.scale * (1 + norm.scale) / (norm.var + 1e-5).sqrt()
        shift = paradigm.centre.shift + norm.shift - norm.mean * scale
        halves = [pack[f"hidden.first.{scope}.weight"] for scope in ("request", "item")]
        torch.testing.assert_close(torch.cat(halves, 1), weight * scale)
        bias = layer.bias + point.bias[0] + (weight * shift).sum(1)
        torch.testing.assert_close(pack["hidden.first.request.bias"], bias)
        torch.testing.assert_close(
            pack["out.weight"], paradigm.centre.layers[2].weight * (1 + point.factor[2])
        )
    assert paradigm.pack(1)["own.prompt.row"].shape == (1, 8)


def test_folded_it_is_the_star_in_eval_mode(data_root: Path) -> None:
    paradigm, rows = star(data_root)
    paradigm.train()(rows)
    paradigm.eval()
    _, request, item = shared_part(paradigm, rows)
    request, item = request.flatten(1), item.flatten(1)
    with torch.no_grad():
        for at in range(DOMAINS + 1):
            plain = paradigm.own(at)["star"]
            expected = paradigm.centre(paradigm.points[at], request, item)
            torch.testing.assert_close(plain(request, item), expected, rtol=1e-4, atol=1e-4)


def test_at_the_start_a_domain_is_the_shared_network(data_root: Path) -> None:
    paradigm, _ = star(data_root, stirred=False)
    for domain in range(DOMAINS + 1):
        fused = paradigm.centre.fused(paradigm.points[domain])
        for (weight, bias), layer in zip(fused, paradigm.centre.layers, strict=True):
            assert torch.equal(weight, layer.weight)
            assert torch.equal(bias, layer.bias)


def test_a_pack_is_as_large_as_the_network(data_root: Path) -> None:
    """N inputs, hidden 6 and 5: 6 N + 6 + 6 * 5 + 5 + 5 + 1, and the prompt's 8."""
    paradigm, rows = star(data_root)
    _, request, item = shared_part(paradigm, rows)
    width = request[0].numel() + item[0].numel()
    assert sum(tensor.numel() for tensor in paradigm.pack(0).values()) == pytest.approx(6 * width + 47 + 8)

"""xDeepFM's compressed interaction network against eq. 6 and 7: by hand, and as loops in numpy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from training.backbones.xdeepfm import CIN, Options, build

FIELDS = (2, 3)
DIM = 4


def test_one_layer_by_hand() -> None:
    cin = CIN(1, 1, (1,), split_half=False)
    with torch.no_grad():
        cin.within.fill_(2.0)
        cin.weight[0].copy_(torch.tensor([[[3.0, 5.0]]]))
    # request (1, 2), item (1, -1): 2 * (1, 4) + 3 * (1, -2) + 5 * (1, 1) = (10, 7), pooled
    assert cin(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, -1.0]]])).item() == 17


def by_loops(cin: CIN, fields: np.ndarray) -> np.ndarray:
    """Pooled maps of one row's fields (F, K)."""
    of_request, _ = FIELDS
    size = len(fields)
    maps, pooled = fields, []
    for at, parameter in enumerate(cin.weight):
        weight = parameter.detach().numpy()
        if at == 0:  # all pairs of fields; a pair of both scopes has its weight once
            whole = np.zeros((len(weight), size, size))
            whole[:, of_request:] = weight
            whole[:, :of_request, :of_request] = cin.within.detach().numpy()
            weight = whole
        new = np.zeros((len(weight), DIM))
        for h, i, j in product(*map(range, weight.shape)):
            new[h] += weight[h, i, j] * maps[i] * fields[j]
        last = at == len(cin.weight) - 1
        half = len(new) // 2 if cin.split_half and not last else 0
        pooled.append((new[:half] if half else new).sum(1))
        maps = new[half:]
    return np.concatenate(pooled)


@pytest.mark.parametrize("split_half", [False, True])
@pytest.mark.parametrize("maps", [(3,), (4, 5), (6, 2, 3)])
def test_maps_are_the_papers(maps: tuple[int, ...], *, split_half: bool) -> None:
    torch.manual_seed(len(maps))
    cin = CIN(*FIELDS, maps, split_half=split_half)
    request, item = torch.randn(1, 2, DIM), torch.randn(6, 3, DIM)
    found = cin(request, item)
    assert found.shape == (6, cin.width)
    torch.testing.assert_close(cin(request.expand(6, -1, -1), item), found)
    for row, result in zip(item.numpy(), found.detach().numpy(), strict=True):
        expected = by_loops(cin, np.concatenate([request[0].numpy(), row]))
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_hidden_units_are_the_pooled_maps_and_the_mlps() -> None:
    backbone = build(Options(maps=(4, 6), hidden=(5, 3)), *FIELDS, DIM).eval()
    request, item = torch.randn(6, 2, DIM), torch.randn(6, 3, DIM)
    hidden, logit = backbone(request, item)
    assert backbone.width == 2 + 6 + 3
    assert torch.equal(hidden[:, :8], backbone.cin(request, item))
    assert torch.equal(hidden[:, 8:], backbone.mlp(request.flatten(1), item.flatten(1)))
    assert not logit.any()


def test_an_odd_number_of_maps_cannot_be_split() -> None:
    with pytest.raises(ValidationError, match="even"):
        Options(maps=(3, 2))
    assert Options(maps=(2, 3)).maps == (2, 3)
    assert Options(maps=(3, 2), split_half=False).maps == (3, 2)

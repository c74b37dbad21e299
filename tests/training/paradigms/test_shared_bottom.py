"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.paradigms.making import dense, make, shared_part, stir


def test_logit_is_the_shared_part_and_the_domains_tower(data_root: Path) -> None:
    paradigm, rows = make("shared_bottom", data_root, tower=[5, 3])
    stir(paradigm)
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        hidden, direct = paradigm.body.backbone(request, item)
        for row in (0, 70, 190):
            tower = paradigm.own(int(rows.domain[row]))["tower"]
            expected = first_order[row] + direct[row] + dense(hidden[row], tower)[0]
            torch.testing.assert_close(found[row], expected)


def test_a_domain_owns_its_tower(data_root: Path) -> None:
    """4 hidden units of the tiny DeepFM: 4 * 16 + 16 + 16 + 1 = 97 floats."""
    paradigm, _ = make("shared_bottom", data_root)
    assert paradigm.owned == {f"own.tower.{at}.{kind}" for at in (0, 2) for kind in ("weight", "bias")}
    assert sum(tensor.numel() for tensor in paradigm.pack(0).values()) == 97

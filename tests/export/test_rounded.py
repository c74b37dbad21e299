"""Packs rounded to float16: what is rounded, and what it costs. Expected bytes are counted by hand."""

import numpy as np
import torch

from export.packs import rounded
from service.contract.pack import Base, DomainPack, Golden


def size(pack, base):
    tensors = {name: tensor.numpy() for name, tensor in pack.items()}
    return len(DomainPack("b", "d", tensors, Golden({}, np.zeros(1, np.float32))).to_bytes(base))


def test_few_changed_rows_are_rounded_and_the_others_stay_the_general_packs():
    general = {"w": torch.linspace(0, 1, 1000)}
    pack = {"w": general["w"].clone()}
    pack["w"][7] = 1 / 3
    found = rounded(pack, general)["w"]
    assert found[7] == torch.tensor(1 / 3).half().float() != pack["w"][7]
    others = torch.arange(1000) != 7
    assert torch.equal(found[others], general["w"][others])


def test_many_changed_rows_are_all_rounded_so_that_a_pack_has_half_the_bytes():
    general = {"w": torch.linspace(0, 1, 10_000)}
    pack = {"w": general["w"] + 0.1}
    base = Base("v", {"w": general["w"].numpy()})
    found = rounded(pack, general)
    assert torch.equal(found["w"], pack["w"].half().float())
    assert size(pack, base) - size(found, base) == 10_000 * 2


def test_a_scalar_is_rounded():
    assert (
        rounded({"b": torch.tensor(1 / 3)}, {"b": torch.tensor(0.0)})["b"]
        == torch.tensor(1 / 3).half().float()
    )

"""What the layers of a Uni-CTR teacher make of rows, for pictures such as the paper's figures 5 and 6."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.data.batches import Rows
from training.nn.ladders import DomainNetwork
from training.teachers.unictr import UniCTR

Floats = npt.NDArray[np.float32]


@torch.inference_mode()
def layers(teacher: UniCTR, rows: Rows) -> dict[str, Floats]:
    """What becomes of n rows on their way.

    Returns:
        `first`, `middle` and `last`: (n, width), the means over tokens of h_0, of the middle layer and of the
        last one. `network` and `untrained`: (n, h), the last hidden layer of the towers, of each row's own
        domain's network, and of networks as they were before training.
    """
    teacher.eval()
    at = next(teacher.parameters()).device
    fresh = copy.deepcopy(teacher.networks)
    with torch.random.fork_rng(devices=[at] if at.type == "cuda" else []):
        torch.manual_seed(0)
        for module in fresh.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
    found: dict[str, list[Tensor]] = {}
    for batch in rows.batches(teacher.most_rows):
        batch = batch.to(at)  # noqa: PLW2901 - the same rows
        hidden, present = teacher.reader.hidden(batch.request_ids, batch.item_ids)
        weight = present[:, :, None] / present.sum(1)[:, None, None]
        for name, layer in (("first", 0), ("middle", len(hidden) // 2), ("last", -1)):
            found.setdefault(name, []).append((hidden[layer] * weight).sum(1))
        read, present = teacher.reader(batch.request_ids, batch.item_ids)
        for name, networks in (("network", teacher.networks), ("untrained", fresh)):
            found.setdefault(name, []).append(_towers(networks, read, present, batch.domain))
    return {name: torch.cat(parts).float().cpu().numpy() for name, parts in found.items()}


def _towers(networks: nn.ModuleList, read: list[Tensor], present: Tensor, domain: Tensor) -> Tensor:
    rows = []
    for at, of in enumerate(domain.tolist()):
        network = networks[of]
        assert isinstance(network, DomainNetwork)  # noqa: S101 - a ModuleList does not know what is in it
        one = [layer[at : at + 1] for layer in read]
        rows.append(network.tower[:-1](network(one, present[at : at + 1])[1]))
    return torch.cat(rows)

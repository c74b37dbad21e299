"""What a run's packs take by the form they are stored in, and what each form costs in quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from export.packs import rounded
from service.contract.pack import Base, DomainPack, Golden
from training import checkpoint
from training.data.batches import Rows
from training.metrics import auc, logloss
from training.model import logits
from training.paradigms._protocol import Pack


def forms(run: Path, data: Path) -> dict[str, dict[str, float]]:
    """By form: bytes of a domain's pack, on average, and macro AUC and log loss of the test rows under it.

    Args:
        run: a complete run.
        data: the folder of prepared data sets.

    Raises:
        RunError: there is none.
    """
    _, prepared, model, _ = checkpoint.load(run, data)
    rows = Rows.encode(prepared.split("test"), model.schema, model.domains)
    servable, general = model.paradigm.servable(), model.pack(None)
    base = Base("", {name: tensor.numpy() for name, tensor in general.items()})
    found = {}
    for form in ("dense", "sparse", "half"):
        sizes, aucs, losses = [], [], []
        for at, domain in enumerate(model.domains):
            pack = rounded(model.pack(domain), general) if form == "half" else model.pack(domain)
            sizes.append(_bytes(pack, None if form == "dense" else base))
            own = rows.of(at)
            label = own.label.numpy()
            logit = model.calibrated(logits(servable, pack, own).numpy(), domain)
            aucs.append(auc(logit, label))
            losses.append(logloss(logit, label))
        found[form] = {
            "pack_bytes": float(np.mean(sizes)),
            "auc": float(np.mean(aucs)),
            "logloss": float(np.mean(losses)),
        }
    return found


def show(report: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """A row a form."""
    table = Table("form", "pack, bytes", "macro AUC", "macro log loss")
    for form, found in report.items():
        table.add_row(form, f"{found['pack_bytes']:,.0f}", f"{found['auc']:.6f}", f"{found['logloss']:.6f}")
    console.print(table)


def _bytes(pack: Pack, base: Base | None) -> int:
    """Of a file with these tensors, and golden rows of nothing."""
    tensors = {name: tensor.numpy() for name, tensor in pack.items()}
    nothing = Golden({}, torch.zeros(1).numpy())
    return len(DomainPack("", "", tensors, nothing).to_bytes(base))

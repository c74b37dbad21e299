"""torch-rechub's models under its own trainer: `python -m loadtest.rivals.torch_rechub <task.json>`.

Columns are NumPy arrays, loaded without workers: of what its `DataGenerator` takes (DataFrames, tensors,
one worker or more), the fastest on one core. The first-order part of DeepFM, Wide & Deep and AutoInt is a
linear layer over the embeddings there; DCN and DCN-V2 have none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.ranking import DCN, AutoInt, DCNv2, DeepFM, WideDeep
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

from loadtest.rivals.rounds import serve


def _model(name: str, features: list[SparseFeature], options: dict[str, Any]) -> torch.nn.Module:
    layers = {"dims": options["hidden"], "dropout": options["dropout"], "activation": "relu"}
    makers = {
        "deepfm": lambda: DeepFM(features, features, layers),
        "wide_deep": lambda: WideDeep(features, features, layers),
        "dcn": lambda: DCN(features, options["layers"], layers),
        "dcnv2": lambda: DCNv2(features, options["layers"], layers, use_low_rank_mixture=False),
        "autoint": lambda: AutoInt(features, [], options["layers"], options["heads"]),  # of K / heads units
    }
    if name not in makers:
        sys.exit(f"it has no {name}")
    made: torch.nn.Module = makers[name]()
    return made


def main(path: Path) -> None:
    """Build model, loader and trainer from what the task says, then train on demand."""
    task = json.loads(path.read_text())
    torch.set_num_threads(task["threads"])
    with np.load(task["rows"]) as stored:
        columns = {name: stored[name] for name in task["fields"]}
        label = stored["label"]
    features = [SparseFeature(name, size, task["dim"]) for name, size in task["fields"].items()]
    model = _model(task["backbone"], features, task["options"])
    # It wants validation and test rows, too; they are not used.
    loader, _, _ = DataGenerator(columns, label).generate_dataloader(
        columns, label, columns, label, batch_size=task["batch"], num_workers=0
    )
    trainer = CTRTrainer(model, optimizer_params={"lr": task["lr"], "weight_decay": task["l2"]})
    serve("torch-rechub", lambda: trainer.train_one_epoch(loader))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

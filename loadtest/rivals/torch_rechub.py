"""torch-rechub's models under its own trainer: `python -m loadtest.rivals.torch_rechub <task.json> <pipe>`.

Columns are NumPy arrays, loaded without workers: of what its `DataGenerator` takes (DataFrames, tensors,
one worker or more), the fastest on one core. The first-order part of DeepFM, Wide & Deep and AutoInt is a
linear layer over the embeddings there; DCN, DCN-V2 and the models with towers have none. An MLP of this
library always has BatchNorm, so towers and gates have it, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom
from torch_rechub.models.ranking import DCN, AutoInt, DCNv2, DeepFM, WideDeep
from torch_rechub.trainers import CTRTrainer, MTLTrainer
from torch_rechub.utils.data import DataGenerator

from loadtest.rivals import tasks
from loadtest.rivals.rounds import serve


def _model(task: dict[str, Any], features: list[SparseFeature]) -> torch.nn.Module:
    options, paradigm = task["options"], task["paradigm_options"]
    layers = {"dims": options.get("hidden"), "dropout": options["dropout"], "activation": "relu"}
    types = _types(task)
    towers = [{"dims": paradigm.get("tower")} for _ in types]
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "deepfm": lambda: DeepFM(features, features, layers),
        "wide_deep": lambda: WideDeep(features, features, layers),
        "dcn": lambda: DCN(features, options["layers"], layers),
        "dcnv2": lambda: DCNv2(features, options["layers"], layers, use_low_rank_mixture=False),
        "autoint": lambda: AutoInt(features, [], options["layers"], options["heads"]),  # of K / heads units
        "shared_bottom": lambda: SharedBottom(features, types, layers, towers),
        "mmoe": lambda: MMOE(features, types, paradigm["experts"], layers, towers),
        "ple": lambda: PLE(
            features, types, 1, paradigm["own_experts"], paradigm["shared_experts"], layers, towers
        ),
    }
    if task["model"] not in makers:
        sys.exit(f"it has no {task['model']}")
    return makers[task["model"]]()


def _types(task: dict[str, Any]) -> list[str]:
    """Of a model's tasks, one for each domain."""
    return ["classification"] * task["domains"]


def main(path: Path) -> None:
    """Build model, loader and trainer from what the task says, then train on demand."""
    task = json.loads(path.read_text())
    torch.set_num_threads(task["threads"])
    with np.load(task["rows"], allow_pickle=False) as stored:
        columns = {name: stored[name] for name in task["fields"]}
        label, domain = stored["label"], stored["domain"]
    features = [SparseFeature(name, size, task["dim"]) for name, size in task["fields"].items()]
    model = _model(task, features)
    adam = {"lr": task["lr"], "weight_decay": task["l2"]}
    if hasattr(model, "task_types"):
        label = tasks.labels(label, domain, task["domains"])
        trainer = MTLTrainer(model, _types(task), optimizer_params=adam)
        trainer.loss_fns = [tasks.own_rows] * task["domains"]
    else:
        trainer = CTRTrainer(model, optimizer_params=adam)
    # It wants validation and test rows, too; they are not used.
    loader, _, _ = DataGenerator(columns, label).generate_dataloader(
        columns, label, columns, label, batch_size=task["batch"], num_workers=0
    )
    serve("torch-rechub", lambda: trainer.train_one_epoch(loader))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

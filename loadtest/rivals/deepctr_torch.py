"""DeepCTR-Torch's models under their own `fit`: `python -m loadtest.rivals.deepctr_torch <task.json> <pipe>`.

Rows are one matrix of floats, which is what `fit` makes of whatever it is given. All models but those with
towers have its linear part. Cross networks are DCN's, of vectors and of matrices (DCN-V2); FNN is WDL
without the wide part. BatchNorm and dropout are everywhere or nowhere, so towers have them, too. Its PLE of
one level computes a gate for the next one. L2 is Adam's weight decay, as a term of the loss takes longer.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DCN, MMOE, PLE, WDL, AutoInt, DeepFM, SharedBottom, xDeepFM

from loadtest.rivals import tasks
from loadtest.rivals.rounds import serve


def _model(task: dict[str, Any], fields: list[SparseFeat]) -> torch.nn.Module:
    options, paradigm = task["options"], task["paradigm_options"]
    no_l2 = {"l2_reg_embedding": 0}
    deep = {"dnn_hidden_units": options["hidden"], "dnn_dropout": options["dropout"], "dnn_use_bn": True}
    linear = {**no_l2, "l2_reg_linear": 0}
    plain = {**linear, **deep, "dnn_use_bn": False, "dnn_activation": torch.nn.Tanh}
    towers = {
        **linear,
        "dnn_dropout": options["dropout"],
        "dnn_use_bn": True,
        "tower_dnn_hidden_units": paradigm.get("tower"),
        "task_types": ["binary"] * task["domains"],
        "task_names": [f"domain_{at}" for at in range(task["domains"])],
    }
    experts = {**towers, "expert_dnn_hidden_units": options["hidden"], "gate_dnn_hidden_units": ()}

    def cross(parameterization: str) -> torch.nn.Module:
        shape = {"cross_num": options["layers"], "cross_parameterization": parameterization}
        made: torch.nn.Module = DCN(fields, fields, l2_reg_cross=0, **shape, **linear, **deep)
        return made

    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "deepfm": lambda: DeepFM(fields, fields, **linear, **deep),
        "wide_deep": lambda: WDL(fields, fields, **linear, **deep),
        "fnn": lambda: WDL([], fields, **plain),
        "dcn": lambda: cross("vector"),
        "dcnv2": lambda: cross("matrix"),
        "xdeepfm": lambda: xDeepFM(
            fields,
            fields,
            cin_layer_size=options["maps"],
            cin_split_half=options["split_half"],
            cin_activation="linear",
            **linear,
            **deep,
        ),
        "autoint": lambda: AutoInt(  # of K / heads units
            fields, fields, options["layers"], options["heads"], dnn_hidden_units=(), **no_l2
        ),
        "shared_bottom": lambda: SharedBottom(fields, bottom_dnn_hidden_units=options["hidden"], **towers),
        "mmoe": lambda: MMOE(fields, paradigm["experts"], **experts),
        "ple": lambda: PLE(fields, paradigm["shared_experts"], paradigm["own_experts"], 1, **experts),
    }
    if task["model"] not in makers:
        sys.exit(f"it has no {task['model']}")
    return makers[task["model"]]()


def main(path: Path) -> None:
    """Build the model and its rows from what the task says, then train on demand."""
    task = json.loads(path.read_text())
    torch.set_num_threads(task["threads"])
    with np.load(task["rows"], allow_pickle=False) as stored:
        matrix = np.stack([stored[name] for name in task["fields"]], 1).astype(np.float32)
        label, domain = stored["label"], stored["domain"]
    model: Any = _model(task, [SparseFeat(name, size, task["dim"]) for name, size in task["fields"].items()])
    loss: Any = "binary_crossentropy"
    if hasattr(model, "num_tasks"):
        label, loss = tasks.labels(label, domain, task["domains"]), tasks.own_rows
    optimiser = torch.optim.Adam(model.parameters(), lr=task["lr"], weight_decay=task["l2"])
    model.compile(optimiser, loss)
    serve("deepctr-torch", lambda: model.fit([matrix], label, task["batch"], verbose=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

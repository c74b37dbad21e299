"""FuxiCTR's models under its own trainer: `python -m loadtest.rivals.fuxictr <task.json> <pipe>`.

The package has the layers and the trainer; its models are in a folder of the repository that is not
packaged, so they are put together from the layers here as they are there. Rows come from its NPZ loader
without workers: of its loaders (NPZ with workers, NPZ blocks, Parquet over Ray), the fastest on one core.
It has no L2 but as a term of the loss, which takes longer; it goes without. Models with towers are of its
multi-task kind, with no first-order part; the repository's PLE has a gate more, whose output nothing reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import (
    CompressedInteractionNet,
    CrossNet,
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    LogisticRegression,
    MLP_Block,
    ScaledDotProductAttention,
)
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import Tensor, nn

from loadtest.rivals import tasks
from loadtest.rivals.rounds import serve


class Model(BaseModel):  # type: ignore[misc] # the package has no types
    """Embeddings and what the repository's model of a backbone's name makes of them."""

    def __init__(self, features: FeatureMap, task: dict[str, Any], folder: Path) -> None:
        super().__init__(features, **_common(task, folder))
        self.embedding_layer = FeatureEmbedding(features, task["dim"])
        self.parts = _parts(task["model"], task["options"], features, task["dim"])
        self.compile("adam", "binary_crossentropy", task["lr"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities (B, 1)."""
        columns = self.get_inputs(inputs)
        fields = self.embedding_layer(columns)
        logit = self.parts(columns, fields)
        return {"y_pred": self.output_activation(logit)}


class TowersModel(MultiTaskModel):  # type: ignore[misc] # the package has no types
    """Embeddings and `Towers`, each with a task's labels."""

    def __init__(self, features: FeatureMap, task: dict[str, Any], folder: Path) -> None:
        domains = task["domains"]
        super().__init__(features, task="binary_classification", num_tasks=domains, **_common(task, folder))
        self.embedding_layer = FeatureEmbedding(features, task["dim"])
        self.towers = Towers(features.num_fields * task["dim"], task)
        self.compile("adam", "binary_crossentropy", task["lr"])
        self.loss_fn = [tasks.own_rows] * domains
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities (B, 1) of each task."""
        fields = self.embedding_layer(self.get_inputs(inputs))
        logits = self.towers(fields.flatten(start_dim=1))
        each = zip(self.feature_map.labels, self.output_activation, logits, strict=True)
        return {f"{label}_pred": activation(logit) for label, activation, logit in each}


class Towers(nn.Module):
    """A tower for each domain over one MLP (shared bottom), or over a gated mean of several (MMoE, PLE)."""

    def __init__(self, width: int, task: dict[str, Any]) -> None:
        super().__init__()
        options, paradigm = task["options"], task["paradigm_options"]

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(_mlp(width, None, options) for _ in range(count))

        def each(make: Callable[[], nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(make() for _ in range(task["domains"]))

        shared, own = (
            paradigm.get("shared_experts", paradigm.get("experts", 1)),
            paradigm.get("own_experts", 0),
        )
        self.each = own
        self.shared, self.own = experts(shared), experts(own * task["domains"])
        gated = shared + own > 1
        self.gates = each(lambda: MLP_Block(width, output_dim=shared + own)) if gated else nn.ModuleList()
        hidden = options["hidden"][-1]
        self.towers = each(lambda: MLP_Block(hidden, hidden_units=paradigm["tower"], output_dim=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, F * K) to (B, 1) of each domain."""
        shared = torch.stack([expert(x) for expert in self.shared], 1)
        if not self.gates:
            return [tower(shared[:, 0]) for tower in self.towers]
        logits = []
        for at, (gate, tower) in enumerate(zip(self.gates, self.towers, strict=True)):
            own = [expert(x)[:, None] for expert in self.own[at * self.each : (at + 1) * self.each]]
            found = torch.cat([shared, *own], 1) if own else shared
            logits.append(tower((torch.softmax(gate(x), 1)[..., None] * found).sum(1)))
        return logits


class Sum(nn.Module):
    """Of parts that read columns, columns and fields (B, F, K), fields, or fields one behind another."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.of = nn.ModuleDict(parts)

    def forward(self, columns: dict[str, Tensor], fields: Tensor) -> Tensor:
        """(B, 1)."""
        given = {"lr": (columns,), "fm": (columns, fields), "cin": (fields,), "attention": (fields,)}
        found = [
            part(*given[name]) if name in given else part(fields.flatten(start_dim=1))
            for name, part in self.of.items()
        ]
        logit: Tensor = sum(found[1:], start=found[0])
        return logit


class Crossed(nn.Module):
    """A cross network beside an MLP, and a linear layer over both."""

    def __init__(self, cross: nn.Module, deep: nn.Module, width: int) -> None:
        super().__init__()
        self.cross, self.deep, self.fc = cross, deep, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F * K) to (B, 1)."""
        logit: Tensor = self.fc(torch.cat([self.cross(x), self.deep(x)], -1))
        return logit


class Attention(nn.Module):
    """Self-attention of several heads with a residual: the package has what is inside the heads."""

    def __init__(self, width: int, out: int, heads: int) -> None:
        super().__init__()
        self.heads, self.out = heads, out
        self.query, self.key, self.value = (nn.Linear(width, out, bias=False) for _ in range(3))
        self.residual = nn.Identity() if width == out else nn.Linear(width, out, bias=False)
        self.attention = ScaledDotProductAttention()

    def forward(self, fields: Tensor) -> Tensor:
        """(B, F, width) to (B, F, out)."""
        rows, shape = len(fields), (self.heads, self.out // self.heads)
        parts = [part(fields).view(rows, -1, *shape) for part in (self.query, self.key, self.value)]
        seen, _ = self.attention(*(part.transpose(1, 2) for part in parts))
        seen = seen.transpose(1, 2).contiguous().view(rows, -1, self.out)
        out: Tensor = (seen + self.residual(fields)).relu()
        return out


def _parts(name: str, options: dict[str, Any], features: FeatureMap, dim: int) -> nn.Module:
    width = features.num_fields * dim

    def deep(out: int | None, activation: str = "ReLU", *, norm: bool = True) -> nn.Module:
        return _mlp(width, out, options, activation, norm=norm)

    if name == "deepfm":
        return Sum(fm=FactorizationMachine(features), deep=deep(1))
    if name == "wide_deep":
        return Sum(lr=LogisticRegression(features), deep=deep(1))
    if name == "fnn":
        return Sum(deep=deep(1, "Tanh", norm=False))
    if name in {"dcn", "dcnv2"}:
        cross = {"dcn": CrossNet, "dcnv2": CrossNetV2}[name](width, options["layers"])
        return Sum(crossed=Crossed(cross, deep(None), width + options["hidden"][-1]))
    if name == "xdeepfm":
        cin = CompressedInteractionNet(features.num_fields, options["maps"])
        return Sum(lr=LogisticRegression(features), cin=cin, deep=deep(1))
    if name == "autoint":
        out = options["heads"] * options["units"]
        sizes = [dim, *[out] * options["layers"]]
        layers = [Attention(*each, options["heads"]) for each in pairwise(sizes)]
        return Sum(attention=nn.Sequential(*layers, nn.Flatten(), nn.Linear(features.num_fields * out, 1)))
    sys.exit(f"it has no {name}")


def _mlp(
    width: int, out: int | None, options: dict[str, Any], activation: str = "ReLU", *, norm: bool = True
) -> nn.Module:
    made: nn.Module = MLP_Block(
        input_dim=width,
        output_dim=out,
        hidden_units=options["hidden"],
        hidden_activations=activation,
        dropout_rates=options["dropout"],
        batch_norm=norm,
    )
    return made


def _common(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "model_id": task["model"],
        "metrics": ["AUC"],
        "model_root": str(folder),
        "verbose": 0,
        "eval_steps": sys.maxsize,
    }


def _with_tasks(rows: str, domains: int) -> tuple[str, list[str]]:
    """A file of the same rows with a column of labels for each domain, and what those are called."""
    with np.load(rows, allow_pickle=False) as stored:
        columns = dict(stored)
    names = [f"label_{at}" for at in range(domains)]
    each = tasks.labels(columns["label"], columns["domain"], domains)
    file = Path(rows).with_name("tasks.npz")
    np.savez(file, **columns, **dict(zip(names, each.T, strict=True)))
    return str(file), names


def main(path: Path) -> None:
    """Build model, loader and trainer from what the task says, then train on demand."""
    task = json.loads(path.read_text())
    torch.set_num_threads(task["threads"])
    features = FeatureMap("rows", str(path.parent))
    make: type[Model] | type[TowersModel] = Model
    rows, features.labels = task["rows"], ["label"]
    if task["model"] in {"shared_bottom", "mmoe", "ple"}:
        make = TowersModel
        rows, features.labels = _with_tasks(rows, task["domains"])
    for name, size in task["fields"].items():
        features.features[name] = {"source": "", "type": "categorical", "vocab_size": size}
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    loader, _ = RankDataLoader(
        features, stage="train", train_data=rows, batch_size=task["batch"], num_workers=0
    )
    model = make(features, task, path.parent)
    # `fit` of no epochs sets the trainer up, and ends with loading the best weights.
    Path(model.model_dir).mkdir()
    model.save_weights(model.checkpoint)
    model.fit(loader, epochs=0)
    serve("fuxictr", lambda: model.train_epoch(loader))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

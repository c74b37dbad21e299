"""FuxiCTR's models under its own trainer: `python -m loadtest.rivals.fuxictr <task.json>`.

The package has the layers and the trainer; its models are in a folder of the repository that is not
packaged, so they are put together from the layers here as they are there. Rows come from its NPZ loader
without workers: of its loaders (NPZ with workers, NPZ blocks, Parquet over Ray), the fastest on one core.
It has no L2 but as a term of the loss, which takes longer; it goes without.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from loadtest.rivals.rounds import serve


class Model(BaseModel):  # type: ignore[misc] # the package has no types
    """Embeddings and what the repository's model of a backbone's name makes of them."""

    def __init__(self, features: FeatureMap, task: dict[str, Any], folder: Path) -> None:
        super().__init__(
            features,
            model_id=task["backbone"],
            metrics=["AUC"],
            model_root=str(folder),
            verbose=0,
            eval_steps=sys.maxsize,
        )
        self.embedding_layer = FeatureEmbedding(features, task["dim"])
        self.parts = _parts(task["backbone"], task["options"], features, task["dim"])
        self.compile("adam", "binary_crossentropy", task["lr"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities (B, 1)."""
        columns = self.get_inputs(inputs)
        fields = self.embedding_layer(columns)
        logit = self.parts(columns, fields)
        return {"y_pred": self.output_activation(logit)}


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
        made: nn.Module = MLP_Block(
            input_dim=width,
            output_dim=out,
            hidden_units=options["hidden"],
            hidden_activations=activation,
            dropout_rates=options["dropout"],
            batch_norm=norm,
        )
        return made

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


def main(path: Path) -> None:
    """Build model, loader and trainer from what the task says, then train on demand."""
    task = json.loads(path.read_text())
    torch.set_num_threads(task["threads"])
    features = FeatureMap("rows", str(path.parent))
    features.labels = ["label"]
    for name, size in task["fields"].items():
        features.features[name] = {"source": "", "type": "categorical", "vocab_size": size}
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    loader, _ = RankDataLoader(
        features, stage="train", train_data=task["rows"], batch_size=task["batch"], num_workers=0
    )
    model = Model(features, task, path.parent)
    # `fit` of no epochs sets the trainer up, and ends with loading the best weights.
    Path(model.model_dir).mkdir()
    model.save_weights(model.checkpoint)
    model.fit(loader, epochs=0)
    serve("fuxictr", lambda: model.train_epoch(loader))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

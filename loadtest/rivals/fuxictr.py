"""FuxiCTR's DeepFM under its own trainer: `python -m loadtest.rivals.fuxictr <task.json>`.

The package has the layers and the trainer; its models are in a folder of the repository that is not
packaged, so DeepFM is put together from the layers here as it is there. Rows come from its NPZ loader
without workers: of its loaders (NPZ with workers, NPZ blocks, Parquet over Ray), the fastest on one core.
It has no L2 but as a term of the loss, which takes longer; it goes without.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from loadtest.rivals.rounds import serve


class DeepFM(BaseModel):  # type: ignore[misc] # the package has no types
    """FM and MLP over the same embeddings; a first-order weight for each value."""

    def __init__(self, features: FeatureMap, task: dict[str, Any], folder: Path) -> None:
        super().__init__(
            features,
            model_id="DeepFM",
            metrics=["AUC"],
            model_root=str(folder),
            verbose=0,
            eval_steps=sys.maxsize,
        )
        self.embedding_layer = FeatureEmbedding(features, task["dim"])
        self.fm = FactorizationMachine(features)
        self.mlp = MLP_Block(
            input_dim=len(task["fields"]) * task["dim"],
            output_dim=1,
            hidden_units=task["hidden"],
            dropout_rates=task["dropout"],
            batch_norm=True,
        )
        self.compile("adam", "binary_crossentropy", task["lr"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities (B, 1)."""
        columns = self.get_inputs(inputs)
        fields = self.embedding_layer(columns)
        logit = self.fm(columns, fields) + self.mlp(fields.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}


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
    model = DeepFM(features, task, path.parent)
    # `fit` of no epochs sets the trainer up, and ends with loading the best weights.
    Path(model.model_dir).mkdir()
    model.save_weights(model.checkpoint)
    model.fit(loader, epochs=0)
    serve("fuxictr", lambda: model.train_epoch(loader))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

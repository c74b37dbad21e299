"""What many tests share: a tiny run of each kind, trained once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.model import Model
from training.recipe import Recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "name": "synthetic",
        "domains": {"big": 3000, "mid": 1200, "small": 600},
        "users": 120,
        "items": 80,
    },
    "dim": 8,
    "backbone": {"name": "deepfm", "hidden": [8, 4]},
    "paradigm": {"name": "plate", "meta_prompts": 4, "prompt_hidden": [8]},
    "joint": {"epochs": 3, "batch": 256, "lr": 5e-3, "patience": 3},
    "tuning": {"epochs": 3, "batch": 128, "lr": 5e-3, "patience": 3},
}


@dataclass(frozen=True)
class Trained:
    """A complete run."""

    folder: Path
    data: Path
    recipe: Recipe
    prepared: Prepared
    model: Model

    def rows(self, split: str = "test") -> Rows:
        return Rows.encode(self.prepared.split(split), self.prepared.schema, self.prepared.domains)  # type: ignore[arg-type]


def train(folder: Path, root: Path, /, **changes: Any) -> Trained:
    """Fit the tiny recipe, changed at the top level."""
    recipe = Recipe.model_validate({**TINY, **changes})
    prepared = prepare(recipe.data.name, recipe.data.options, root)
    with Progress(disable=True) as bars:
        model = Fit(recipe, prepared, Run(folder, recipe, prepared), bars)()
    return Trained(folder, root, recipe, prepared, model)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Trained:
    """PLATE Fusion over DeepFM, both stages."""
    return train(tmp_path_factory.mktemp("run") / "tiny", data_root)

"""`Exported`: a model trained a little, and its bundle, for what measures the service and not the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from export.bundle import build
from service.contract.bundle import Bundle
from training.checkpoint import Run
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.model import Model
from training.recipe import Recipe


@dataclass(frozen=True)
class Exported:
    """What it was trained on, the model, and what the service loads."""

    prepared: Prepared
    model: Model
    bundle: Bundle


def export(
    place: Path, sizes: Mapping[str, int], recipe: Mapping[str, Any] | None = None, *, many: bool = False
) -> Exported:
    """Train PLATE over DeepFM for an epoch, and export it.

    Args:
        place: a folder for what is made.
        sizes: `loadtest.catalogue`'s options.
        recipe: what is otherwise in the recipe.
        many: also make the graphs of many requests.
    """
    whole = Recipe.model_validate(
        {
            "name": "loadtest",
            "data": {"name": "loadtest.catalogue", **sizes},
            "backbone": {"name": "deepfm", "hidden": [64, 32]},
            "paradigm": {"name": "plate"},
            "joint": {"epochs": 1},
            "tuning": {"epochs": 0},
            **(recipe or {}),
        }
    )
    prepared = prepare(whole.data.name, whole.data.options, place / "data")
    run = Run(place / "run", whole, prepared)
    with Progress(disable=True) as bars:
        model = Fit(whole, prepared, run, bars)()
    return Exported(
        prepared, model, build(whole, prepared, model, run.metrics or {}, place / "bundles", many=many)
    )

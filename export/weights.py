"""A bundle's weights for torch: the one-domain form, as it was exported, can be trained again.

`weights.safetensors` holds the shared body and the general pack's tensors, by their name in the servable.
The service does not read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as tensors
from torch import nn

from service.contract import files
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from training.model import build
from training.paradigms._protocol import Paradigm
from training.recipe import Recipe

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Rebuilt:
    """What a bundle was exported from."""

    recipe: Recipe
    paradigm: Paradigm
    """Its body is the bundle's. What its own domains had is not: it is what a new paradigm begins with."""
    servable: nn.Module
    """The one-domain form, under the general pack."""


def save(servable: nn.Module, folder: Path) -> None:
    """Write a servable's tensors into a bundle's folder. Equal ones give equal bytes."""
    state = {name: tensor.detach().contiguous() for name, tensor in servable.state_dict().items()}
    files.write(folder / WEIGHTS, tensors.save(state))


def rebuild(bundle: Bundle) -> Rebuilt:
    """The servable of a bundle, from nothing but the bundle.

    Raises:
        BundleError: the bundle has no weights, or not those of the model in its manifest.
        UnknownOption: its backbone or paradigm is not installed here.
        RunError: its recipe cannot be read.
    """
    path = bundle.path / WEIGHTS
    if not path.is_file():
        raise BundleError(f"{bundle.path} has no {WEIGHTS}, so it cannot be trained; export the run again")
    recipe = Recipe.resolve(bundle.manifest.model, what=f"recipe of {bundle.path}")
    paradigm = build(recipe, bundle.schema, bundle.manifest.domains).paradigm
    servable = paradigm.servable()
    try:
        servable.load_state_dict(tensors.load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{path} does not fit the model in the manifest: {error}") from error
    return Rebuilt(recipe, paradigm, servable.eval())

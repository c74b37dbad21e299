"""`Model`: a paradigm over a backbone, and what tuning made of each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service.contract import plugins
from service.contract.schema import FeatureSchema
from training.data.batches import Rows
from training.paradigms._protocol import Pack, Paradigm
from training.recipe import Recipe, parse


@dataclass
class Model:
    """A paradigm, the domains it knows, and their tuned packs."""

    paradigm: Paradigm
    schema: FeatureSchema
    domains: tuple[str, ...]
    tuned: dict[str, Pack] = field(default_factory=dict)
    calibration: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    """(a, b) of a domain's served logit a * logit + b; None: the general pack's."""

    def pack(self, domain: str | None) -> Pack:
        """A domain's tensors: as tuned, else as the stages over all domains left them; None: the general."""
        if domain in self.tuned:
            return self.tuned[domain]
        return self.paradigm.pack(None if domain is None else self.domains.index(domain))

    def parameters(self) -> int:
        """Of the one-domain form."""
        return sum(parameter.numel() for parameter in self.paradigm.servable().parameters())

    def parameters_of_domain(self) -> int:
        """Of them, those that a domain owns."""
        return sum(tensor.numel() for tensor in self.pack(None).values())

    def parameters_tuned(self) -> int:
        """Of those, the ones that a stage over each domain trains."""
        tuned = self.paradigm.trained_alone()
        return sum(tensor.numel() for name, tensor in self.pack(None).items() if name in tuned)

    def changed_of_domain(self) -> float:
        """Of those, how many differ from the general pack's, on average over domains."""
        general = self.pack(None)
        packs = [self.pack(domain) for domain in self.domains]
        # What is tuned is kept in memory, wherever the rest of the model is.
        changed = sum(
            int((pack[name].cpu() != general[name].cpu()).sum()) for pack in packs for name in general
        )
        return changed / len(packs)

    def logits(self, rows: Rows, domain: str | None) -> Tensor:
        """Logits (n,) of rows under a domain's pack."""
        return logits(self.paradigm.servable(), self.pack(domain), rows, self.paradigm.most_rows)

    def calibrated(self, logit: npt.NDArray[np.float32], domain: str | None) -> npt.NDArray[np.float64]:
        """Logits (n,) as they are served."""
        a, b = self.calibration.get(domain, (1.0, 0.0))
        return a * logit.astype(np.float64) + b


def build(recipe: Recipe, schema: FeatureSchema, domains: Sequence[str]) -> Model:
    """The model of a recipe, initialised by its seed.

    Raises:
        UnknownOption: no such backbone or paradigm.
        RunError: it does not take the options given.
    """
    backbone = plugins.load("training.backbones", recipe.backbone.name)
    paradigm = plugins.load("training.paradigms", recipe.paradigm.name)
    backbone_options = parse(backbone.Options, recipe.backbone.options, f"backbone {recipe.backbone.name}")
    paradigm_options = parse(paradigm.Options, recipe.paradigm.options, f"paradigm {recipe.paradigm.name}")
    torch.manual_seed(recipe.seed)
    make = partial(backbone.build, backbone_options, dim=recipe.dim)
    built = paradigm.build(paradigm_options, schema, make, recipe.dim, len(domains))
    return Model(built.eval(), schema, tuple(domains))


@torch.inference_mode()
def logits(servable: nn.Module, pack: Mapping[str, Tensor], rows: Rows, most: int = 8192) -> Tensor:
    """Logits (n,) of rows under a pack, `most` at a time; the servable itself is left as it is."""
    servable.eval()
    at = next(servable.parameters()).device
    tensors = {name: tensor.to(at) for name, tensor in pack.items()}
    parts = [
        torch.func.functional_call(servable, tensors, batch.to(at).arrays) for batch in rows.batches(most)
    ]
    return torch.cat(parts).float().cpu() if parts else torch.empty(0)


@torch.inference_mode()
def joint_logits(paradigm: Paradigm, rows: Rows) -> Tensor:
    """Logits (n,) of rows, each under its own domain."""
    paradigm.eval()
    order = paradigm.alike(rows)
    read = rows if order is None else rows.ordered(order.to(rows.label.device))
    found = torch.cat([paradigm(batch) for batch in read.batches(paradigm.most_rows)]).float().cpu()
    return found if order is None else torch.empty_like(found).index_copy(0, order, found)

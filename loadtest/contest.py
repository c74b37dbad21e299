"""`Contest`: two packs of one domain, of which one has a known share of clicks more than the other.

What a pack is worth is known, because the simulator knows every click's probability: the mean of it over the
items that the pack would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from export.packs import golden_request, pack_of
from loadtest.exported import Exported
from loadtest.shoppers import Shoppers, Visits
from service.contract.pack import DomainPack
from training.data.batches import Rows
from training.data.sources.synthetic import DEVICES, Synthetic
from training.model import logits
from training.paradigms._protocol import Pack

Floats = npt.NDArray[np.float64]
_STEPS = 14
"""Bisections, after which the lift is found to a ten-thousandth of what noise can do."""
_SOUGHT, _KNOWN = 10_000, 20_000
"""Users on whose requests the noise is chosen, and on which the lift is then measured."""


@dataclass(frozen=True)
class Lift:
    """By how much the clicks of one pack are above those of another, in truth."""

    value: float
    se: float
    """Of drawing the requests on which it was measured; both packs have the same."""
    rates: tuple[float, float]
    """Mean true probability of what each pack shows, the better one's first."""


@dataclass(frozen=True)
class Contest:
    """A model's own pack of a domain, and what it is to be compared with."""

    made: Exported
    source: Synthetic
    shoppers: Shoppers
    seed: int = 0

    @cached_property
    def own(self) -> Pack:
        """The domain's tensors as trained."""
        return self.made.model.pack(self.shoppers.domain)

    def pack(self, tensors: Pack | None = None, shift: float = 0.0) -> DomainPack:
        """A pack that can be put into a store.

        Args:
            tensors: in place of the trained ones.
            shift: of its logits, on top of the calibration: the order stays, the probabilities do not.
        """
        model, domain, manifest = self.made.model, self.shoppers.domain, self.made.bundle.manifest
        frame = self.made.prepared.split("valid").filter(pl.col("domain") == domain)
        scale, offset = model.calibration.get(domain, (1.0, 0.0))
        return pack_of(
            model.paradigm.servable(),
            self.own if tensors is None else tensors,
            golden_request(Rows.encode(frame, model.schema, model.domains), model.schema),
            domain=domain,
            calibration=(scale, offset + shift),
            bundle=manifest.bundle,
            inputs=manifest.inputs,
        )

    def worse(self, lift: float) -> Pack:
        """The trained tensors with so much noise that they are worse by a given lift.

        Args:
            lift: that the trained ones are to have over them.
        """
        random = np.random.default_rng([self.seed, 1])
        noise = {
            name: torch.from_numpy(
                (random.standard_normal(tensor.shape) * float(tensor.std() if tensor.numel() > 1 else 0.0))
                .astype(np.float32)
                .reshape(tensor.shape)
            )
            for name, tensor in self.own.items()
        }
        seen = self._visits(random, _SOUGHT)
        rows = self._rows(seen)
        best = self._rate(self.own, seen, rows).mean()
        low, high, found = 0.0, 4.0, self.own
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = {name: tensor + middle * noise[name] for name, tensor in self.own.items()}
            if best / self._rate(found, seen, rows).mean() - 1 < lift:
                low = middle
            else:
                high = middle
        return found

    def lift(self, better: Pack, worse: Pack) -> Lift:
        """What one pack is worth more than another, on requests on which neither was made."""
        seen = self._visits(np.random.default_rng([self.seed, 2]), _KNOWN)
        rows = self._rows(seen)
        one, other = (self._rate(pack, seen, rows) for pack in (better, worse))
        ratio = float(one.mean() / other.mean())
        spread = (one - ratio * other).std(ddof=1) / np.sqrt(len(one)) / other.mean()
        return Lift(ratio - 1, float(spread), (float(one.mean()), float(other.mean())))

    def _visits(self, random: np.random.Generator, most: int) -> Visits:
        return self.shoppers.visits(random, random.permutation(len(self.shoppers))[:most])

    def _rate(self, pack: Pack, seen: Visits, rows: Rows) -> Floats:
        """Mean true probability of what is shown, by request (Q,)."""
        scores = logits(self.made.model.paradigm.servable(), pack, rows).numpy().reshape(seen.item.shape)
        shown = np.argsort(-scores, axis=1, kind="stable")[:, : self.shoppers.shown]
        return np.asarray(np.take_along_axis(seen.probability, shown, axis=1).mean(axis=1))

    def _rows(self, seen: Visits) -> Rows:
        """Every candidate of every request as a row, (Q · C,)."""
        each = np.repeat(np.arange(len(seen.user)), seen.item.shape[1])
        context: dict[str, Any] = {
            "domain": pl.Series([self.shoppers.domain]).gather(np.zeros(len(each), np.int64)),
            "label": np.zeros(len(each), np.int8),
            "context.hour": seen.hour[each],
            "context.device": pl.Series(DEVICES).gather(seen.device[each]),
        }
        frame = pl.DataFrame(context).hstack(self.source.users[seen.user[each]])
        items = self.source.items().drop("name", "text")[seen.item.reshape(-1)]
        model = self.made.model
        return Rows.encode(frame.hstack(items), model.schema, model.domains)

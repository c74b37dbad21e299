"""How good a model is, domain by domain, with probabilities as they are served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from training.calibration import platt
from training.data.batches import Rows
from training.data.prepare import Prepared, Split
from training.metrics import quality
from training.model import Model, logits


@dataclass(frozen=True)
class Labelled:
    """Rows, and whose they are."""

    rows: Rows
    user: npt.NDArray[np.int64]
    """(n,) a number for each user, below 0 where none is known."""

    @classmethod
    def of(cls, prepared: Prepared, split: Split) -> Labelled:
        """A split of prepared data, encoded."""
        frame = prepared.split(split)
        return cls(Rows.encode(frame, prepared.schema, prepared.domains), users(frame))


@dataclass(frozen=True)
class Evaluation:
    """What rows come to under their packs."""

    report: dict[str, Any]
    """`{domains: {<domain>: {pack, uncalibrated, joint, general}}, macro: {pack, ...}}`, each with the
    fields of `Quality`: as served; before calibration; under the pack that the stages over all domains
    left, calibrated; and under the general pack."""
    logit: npt.NDArray[np.float64]
    """(n,), as served."""
    general: npt.NDArray[np.float64]
    """(n,), as the general pack serves."""


def users(frame: pl.DataFrame) -> npt.NDArray[np.int64]:
    """(n,) a number for each row's user, below 0 where none is known."""
    if "user.id" not in frame:
        return np.full(frame.height, -1)
    return frame["user.id"].rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1


def calibrate(model: Model, valid: Rows) -> dict[str | None, tuple[float, float]]:
    """Platt scaling of every domain's pack on its validation rows; None is the general pack, on all rows."""
    found: dict[str | None, tuple[float, float]] = {}
    for domain in (None, *model.domains):
        own = valid if domain is None else valid.of(model.domains.index(domain))
        found[domain] = platt(model.logits(own, domain).numpy(), own.label.numpy())
    return found


def evaluate(model: Model, data: Labelled, valid: Rows) -> Evaluation:
    """Quality of every domain's rows.

    Args:
        model: trained and calibrated.
        data: what to evaluate on.
        valid: validation rows, which calibrate what `joint` reports.
    """
    domains: dict[str, dict[str, Any]] = {}
    served, general = np.zeros(len(data.rows)), np.zeros(len(data.rows))
    servable, most = model.paradigm.servable(), model.paradigm.most_rows
    for at, domain in enumerate(model.domains):
        mine = data.rows.domain == at
        own, user = data.rows[mine], data.user[mine.numpy()]
        label = own.label.numpy()
        raw = model.logits(own, domain).numpy()
        scores = {"pack": model.calibrated(raw, domain), "uncalibrated": raw}
        scores["joint"] = scores["pack"]
        if domain in model.tuned:
            joint, own_valid = model.paradigm.pack(at), valid.of(at)
            a, b = platt(logits(servable, joint, own_valid, most).numpy(), own_valid.label.numpy())
            scores["joint"] = a * logits(servable, joint, own, most).numpy() + b
        scores["general"] = model.calibrated(model.logits(own, None).numpy(), None)
        served[mine.numpy()], general[mine.numpy()] = scores["pack"], scores["general"]
        domains[domain] = {name: asdict(quality(score, label, user)) for name, score in scores.items()}
    names = next(iter(domains.values()))
    macro = {name: _mean(found[name] for found in domains.values()) for name in names}
    return Evaluation({"domains": domains, "macro": macro}, served, general)


def _mean(found: Iterable[dict[str, float]]) -> dict[str, float]:
    """Over domains, without those for which a figure is not defined; rows are added up."""
    listed = list(found)
    means = {}
    for name in listed[0]:
        values = np.array([each[name] for each in listed])
        defined = values[~np.isnan(values)]
        means[name] = float(values.sum() if name == "rows" else defined.mean() if len(defined) else np.nan)
    return means

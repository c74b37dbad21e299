"""Domains that a model has not seen: what its general pack makes of them, and a pack tuned on their rows."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.progress import Progress

from training.data.batches import Rows
from training.data.prepare import SPLITS, Prepared
from training.loop import Loop
from training.metrics import auc
from training.model import Model, logits
from training.paired import deviation
from training.recipe import Recipe
from training.tuning import tune, tuned_alone

FILE = "unseen.parquet"
"""In a run's folder."""


def judge(model: Model, unseen: Prepared, recipe: Recipe, progress: Progress) -> bytes:
    """Test rows of other domains, as a Parquet file: `row`, `general`, `own`, `tuned`, `seconds`.

    `own` has the logit by each of the model's own domains. A domain's pack is tuned from the general one on
    its training rows; everything else is frozen. A recipe without tuning leaves `tuned` and `seconds` empty.

    Args:
        model: trained.
        unseen: rows of domains that it has not seen, with its fields.
        recipe: the model's.
        progress: shows the tuning.
    """
    loop = Loop(recipe.seed, progress, precision=getattr(torch, recipe.precision))
    most = model.paradigm.most_rows
    parts = []
    for domain in unseen.domains:
        split = {name: unseen.split(name).filter(pl.col("domain") == domain) for name in SPLITS}
        rows = {name: _encoded(frame, model) for name, frame in split.items()}
        general = model.calibrated(model.logits(rows["test"], None).numpy(), None)
        own = [model.logits(rows["test"], seen).numpy() for seen in model.domains]
        columns: dict[str, Any] = {"row": split["test"]["row"], "general": general}
        columns["own"] = np.stack(own, 1).astype(np.float64)
        columns |= {name: pl.Series([None] * len(general), dtype=pl.Float64) for name in ("tuned", "seconds")}
        if recipe.tuning.epochs:
            began = time.perf_counter()
            servable = model.paradigm.servable()
            servable.load_state_dict(model.pack(None), strict=False)
            tune(
                servable,
                tuned_alone(model.paradigm, recipe.paradigm.name),
                recipe.tuning,
                domain=domain,
                train=rows["train"],
                valid=rows["valid"],
                loop=loop,
                most=most,
            )
            columns["seconds"] = time.perf_counter() - began
            columns["tuned"] = logits(servable, {}, rows["test"], most).numpy().astype(np.float64)
        parts.append(pl.DataFrame(columns))
    buffer = io.BytesIO()
    pl.concat(parts).write_parquet(buffer)
    return buffer.getvalue()


def figures(runs: Iterable[tuple[str, Path, Path | None]]) -> dict[str, Any]:
    """AUC on the test rows of domains that models have not seen, by model and domain.

    Args:
        runs: a model's name, its run's folder, and the prepared rows that it was judged on, if it was.

    Returns:
        `{<model>: {<domain>: {general_auc_mean, general_auc_std, best_own_auc_mean, ..., tuned_auc_mean, ...,
        seconds_mean, ...}}}`; without the latter two where nothing was tuned. `best_own` is that of the
        model's own domains which ranks the rows best: the test rows themselves choose it, so it flatters.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, folder, unseen in runs:
        if unseen is None:
            continue
        test = Prepared.open(unseen).split("test").select("row", "domain", "label")
        judged = test.join(pl.read_parquet(folder / FILE), on="row", maintain_order="left")
        for (domain,), mine in judged.group_by("domain", maintain_order=True):
            into = found.setdefault(name, {}).setdefault(str(domain), {})
            label = mine["label"].to_numpy()
            into.setdefault("general_auc", []).append(auc(mine["general"].to_numpy(), label))
            own = mine["own"].to_numpy()
            into.setdefault("best_own_auc", []).append(max(auc(each, label) for each in own.T))
            if not mine["tuned"].has_nulls():
                into.setdefault("tuned_auc", []).append(auc(mine["tuned"].to_numpy(), label))
                into.setdefault("seconds", []).append(float(mine["seconds"][0]))
    return {
        name: {domain: _over_seeds(values) for domain, values in domains.items()}
        for name, domains in found.items()
    }


def _over_seeds(values: dict[str, list[float]]) -> dict[str, float]:
    means = {f"{name}_mean": float(np.mean(each)) for name, each in values.items()}
    return means | {f"{name}_std": deviation(each) for name, each in values.items()}


def _encoded(frame: pl.DataFrame, model: Model) -> Rows:
    """Rows of a domain that has no number in the model; which one they get is not read."""
    return Rows.encode(frame.with_columns(domain=pl.lit(model.domains[0])), model.schema, model.domains)

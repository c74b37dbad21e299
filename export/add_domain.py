"""A new domain on the body of a bundle: tune a pack on its rows, and make it live.

Nothing is exported and nothing restarts. The body is frozen, so the graph that the services have fits the new
pack; the pack starts as the bundle's general one, which is a candidate whenever an epoch is chosen.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from export import parity
from export.bundle import ENGINE
from export.packs import golden_request, pack_of
from export.publish import person
from export.weights import Rebuilt, rebuild
from service import lifecycle
from service.contract import files, hashing, plugins
from service.contract.bundle import Bundle
from service.contract.errors import Conflict, RunError
from service.contract.pack import DomainPack, valid_domain, version
from service.stores._open import open_store
from service.stores._protocol import PackStore
from training import newcomer
from training.calibration import platt
from training.evaluation import Labelled
from training.loop import Loop
from training.metrics import quality
from training.model import logits
from training.paradigms._protocol import Pack
from training.recipe import Recipe
from training.tuning import tune, tuned_alone

EPOCHS = 30
"""At most so many, or the recipe's if they are more: a new domain starts farther from its best pack than one
that the joint stage has seen, and early stopping ends the tuning of either."""
_FREE = {"tuning", "seed", "threads"}
"""What of a bundle's recipe can be changed without changing its body."""


@dataclass(frozen=True)
class Tuned:
    """A new domain's pack, and what it is worth."""

    domain: str
    data: bytes
    """The pack as a file."""
    origin: str
    """For the store's history: which rows it was tuned on."""
    report: dict[str, Any]


@dataclass(frozen=True)
class Addition:
    """What to tune and how."""

    domain: str
    file: Path
    """Its rows."""
    bundle: Bundle
    overrides: Sequence[str] = ()
    """Of the bundle's recipe, as in `Recipe.load`."""

    def __call__(self, progress: Progress) -> Tuned:
        """Read the rows, tune on them, and check the pack as a service will.

        Raises:
            RunError: the rows cannot be used, or the recipe cannot be changed so.
            BundleError: the bundle has no weights to tune.
            PackError: a service would refuse the pack.
        """
        began = time.perf_counter()
        if not valid_domain(self.domain):
            raise RunError(f"{self.domain!r} is not a domain's name; such match [a-z0-9][a-z0-9._-]{{0,63}}")
        built = rebuild(self.bundle)
        recipe = _changed(built.recipe, self.overrides)
        torch.set_num_threads(recipe.threads)
        rows = newcomer.read(self.file, self.bundle.schema, self.bundle.items, recipe.seed)
        for remark in rows.remarks:
            progress.console.print(f"{self.file.name}: {remark}", markup=False, soft_wrap=True)
        read = time.perf_counter()
        general = self._general(built)
        trains, most = tuned_alone(built.paradigm, recipe.paradigm.name), built.paradigm.most_rows
        with progress:
            outcome = tune(
                built.servable,
                trains,
                recipe.tuning,
                domain=self.domain,
                train=rows.parts["train"].rows,
                valid=rows.parts["valid"].rows,
                loop=Loop(recipe.seed, progress),
                most=most,
            )
        state = built.servable.state_dict()
        pack = {name: state[name].clone() for name in sorted(built.paradigm.owned)}
        valid = rows.parts["valid"].rows
        calibration = platt(logits(built.servable, {}, valid, most).numpy(), valid.label.numpy())
        made = pack_of(
            built.servable,
            pack,
            golden_request(valid, self.bundle.schema),
            domain=self.domain,
            calibration=calibration,
            bundle=self.bundle.manifest.bundle,
            inputs=self.bundle.manifest.inputs,
        )
        data = made.to_bytes(self.bundle.base)
        _check(data, self.bundle)
        both = {"general": general, "pack": (pack, calibration)}
        report = {
            "domain": self.domain,
            "bundle": self.bundle.manifest.bundle,
            "rows": {name: len(part.rows) for name, part in rows.parts.items()},
            "split_by": rows.by,
            "unknown_items": rows.strangers,
            "unseen_items": rows.unseen,
            "remarks": list(rows.remarks),
            "epochs": outcome.epochs,
            "best_epoch": outcome.best_epoch,
            "stayed_general": outcome.best_epoch == 0,
            "quality": {
                split: {name: _quality(built.servable, *each, part, most) for name, each in both.items()}
                for split, part in rows.parts.items()
                if split != "train"
            },
            "version": version(data),
            "bytes": len(data),
            "seconds": {"reading": read - began, "tuning": time.perf_counter() - read},
        }
        origin = f"{self.file.name} {hashing.file(self.file)[:8]}, seed {recipe.seed}"
        return Tuned(self.domain, data, origin, report)

    def _general(self, built: Rebuilt) -> tuple[Pack, tuple[float, float]]:
        """The bundle's general pack, before it is tuned, with its own calibration."""
        state = built.servable.state_dict()
        _, data = next(self.bundle.packs())
        a, b = DomainPack.from_bytes(data).calibration.tolist()
        return {name: state[name].clone() for name in built.paradigm.owned}, (a, b)


def _check(data: bytes, bundle: Bundle) -> None:
    """Refuse a pack that a service would refuse."""
    engine = plugins.load("service.engines", ENGINE).open(bundle, threads=1)
    try:
        lifecycle.check(data, bundle=bundle, engine=engine, tolerance=parity.BUDGET)
    finally:
        engine.close()


def add(
    addition: Addition, url: str | None, out: Path | None, *, replace: bool, progress: Progress
) -> dict[str, Any]:
    """Tune a pack and make it live; returns the report.

    Args:
        addition: what to tune.
        url: the store; None to publish nothing.
        out: a file for the pack.
        replace: also if the domain is live.
        progress: shows the tuning.

    Raises:
        MdctrError: something about the rows, the bundle or the store; nothing was published.
    """
    bundle = addition.bundle.manifest.bundle
    # Before the tuning, so that it is not in vain.
    live = asyncio.run(_live(url, bundle, addition.domain, replace)) if url else None
    tuned = addition(progress)
    began = time.perf_counter()
    if out:
        files.write(out, tuned.data)
    if url:
        asyncio.run(_promote(url, bundle, tuned, live))
    report = {**tuned.report, "published": url is not None, "replaced": live}
    report["seconds"]["publishing"] = time.perf_counter() - began
    return report


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table and a summary."""
    table = Table(
        "held-out rows", "AUC", "log loss", "ECE", title=f"{report['domain']} on {report['bundle']}"
    )
    for name, label in (("general", "general pack"), ("pack", "new pack")):
        found = report["quality"]["test"][name]
        figures = (found[figure] for figure in ("auc", "logloss", "ece"))
        table.add_row(label, *("-" if figure is None else f"{figure:.4f}" for figure in figures))
    console.print(table)
    rows = report["rows"]
    seconds = ", ".join(f"{spent:.1f} {what}" for what, spent in report["seconds"].items())
    if report["stayed_general"]:
        tuned = (
            f"none of {report['epochs']} epochs was better on validation than the general pack, which stays, "
            "calibrated on the domain's rows"
        )
    else:
        tuned = f"epoch {report['best_epoch']} of {report['epochs']} is the best on validation"
    done = "published" if report["published"] else "not published"
    instead = f" in the place of {report['replaced']}" if report["replaced"] else ""
    summary = f"""\
rows: {rows["train"]:,} to train, {rows["valid"]:,} to validate, {rows["test"]:,} held out, split by \
{report["split_by"]}; {report["unknown_items"]:.1%} with an item that is not in \
the bundle's table, {report["unseen_items"]:.1%} with one that training has not seen
{tuned}
seconds: {seconds}
version {report["version"]}, {report["bytes"]:,} bytes: {done}{instead}"""
    console.print(summary, soft_wrap=True)


async def _live(url: str, bundle: str, domain: str, replace: bool) -> str | None:
    """What is live in the domain."""
    async with _opened(url, bundle) as store:
        live = (await store.live()).get(domain)
    if live is not None and not replace:
        raise Conflict(f"{domain} is live with version {live}; --replace puts the new pack in its place")
    return live


async def _promote(url: str, bundle: str, tuned: Tuned, live: str | None) -> None:
    """Make it live, if what was live before still is."""
    async with _opened(url, bundle) as store:
        put = await store.put(tuned.domain, tuned.data)
        if put != live:
            expected = {tuned.domain: live}
            await store.promote({tuned.domain: put}, run=tuned.origin, by=person(), expected=expected)


@asynccontextmanager
async def _opened(url: str, bundle: str) -> AsyncIterator[PackStore]:
    store = open_store(url, bundle)
    try:
        yield store
    finally:
        await store.close()


def _changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    plain = recipe.model_dump(mode="json")
    plain["tuning"]["epochs"] = max(EPOCHS, recipe.tuning.epochs)
    changed = Recipe.resolve(plain, overrides)
    if changed.model_dump(exclude=_FREE) != recipe.model_dump(exclude=_FREE):
        raise RunError("only --tuning.*, --seed and --threads can be changed; the rest is the bundle's")
    return changed


def _quality(
    servable: nn.Module, pack: Pack, calibration: tuple[float, float], part: Labelled, most: int
) -> dict[str, float | None]:
    """Of a part of the rows under a pack, as it is served; None where a figure is not defined.

    Rows are scored `most` at a time.
    """
    a, b = calibration
    logit = a * logits(servable, pack, part.rows, most).numpy().astype(np.float64) + b
    found = asdict(quality(logit, part.rows.label.numpy(), part.user))
    return {name: None if math.isnan(figure) else figure for name, figure in found.items()}

"""From a new domain's rows on disk to its first answer over HTTP, and what its pack is worth.

One domain is left out when a model is trained, exported, published and served. Then `python -m export
add-domain` adds it, as a command of its own, while the service runs; the clock starts with the command and
stops at the first answer for the domain. On the rows that the command holds out are compared

    general    the general pack of the bundle, which has never seen the domain
    added      the new pack, by its answers over HTTP; all others are scored by torch
    scratch    all parameters of the same backbone, trained on the domain's rows alone; of several learning
               rates the best on validation
    joint      the same recipe with the domain in both stages
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.table import Table

from export.bundle import build
from export.weights import rebuild
from loadtest import left_out
from loadtest.demo import CANDIDATES, JSON
from loadtest.redis_server import redis_server
from loadtest.replay import Request, requests
from loadtest.server import service
from service.contract import files
from service.contract.bundle import Bundle
from service.contract.errors import MdctrError, RunError
from service.contract.pack import DomainPack
from training import checkpoint, newcomer
from training.__main__ import progress
from training.checkpoint import Run
from training.data.prepare import prepare
from training.evaluation import Labelled
from training.fit import Fit
from training.metrics import auc, ece, logloss
from training.model import logits
from training.recipe import Choice, Recipe

SCRATCH_LR = (5e-4, 1e-3, 2e-3, 4e-3)
"""Learning rates that a model of the domain alone may choose from, on validation."""
_WAIT = 120.0
"""Seconds from the command's end until the first answer must be there."""
_RESAMPLES = 1000
_MEASURES = {"auc": auc, "logloss": logloss, "ece": ece}
_PAUSE = 0.002
"""Seconds between two requests of who waits for the answer."""


class BenchError(MdctrError):
    """The command failed, or no answer came."""


@dataclass(frozen=True)
class Case:
    """What is left out of what."""

    data: str
    options: Mapping[str, Any]
    """The source's, in the place of the recipe's."""
    domain: str


CASES = {
    "synthetic": Case(
        "synthetic",
        {"domains": {"feed": 70_000, "shop": 30_000, "ads": 15_000, "new": 5_000, "late": 100_000}},
        "late",
    ),
    "kuairand": Case("kuairand", {}, "tab-4"),
}


@dataclass(frozen=True)
class Scores:
    """What one model says about the held-out rows, calibrated."""

    logit: npt.NDArray[np.float64]
    label: npt.NDArray[np.generic]

    def quality(self) -> dict[str, float]:
        """AUC, log loss and calibration error."""
        return {name: measure(self.logit, self.label) for name, measure in _MEASURES.items()}

    def above(self, other: Scores) -> dict[str, float]:
        """How much higher its AUC is than another's: measured, and 95 % of paired resamples of the rows."""
        rows, random = len(self.label), np.random.default_rng(0)
        gaps = []
        for _ in range(_RESAMPLES):
            at = random.integers(0, rows, rows)
            gaps.append(auc(self.logit[at], self.label[at]) - auc(other.logit[at], self.label[at]))
        low, high = np.nanpercentile(gaps, [2.5, 97.5])
        return {"auc": auc(self.logit, self.label) - auc(other.logit, self.label), "low": low, "high": high}


def case_for(data: str, domain: str | None) -> Case:
    """The case of a data set, with another domain left out if one is named.

    Raises:
        RunError: there is none.
    """
    if data not in CASES:
        raise RunError(f"no case for {data!r}; there are {', '.join(CASES)}")
    case = CASES[data]
    return Case(case.data, case.options, domain or case.domain)


def bench(case: Case, out: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Run it all and return the report, which is also written to `out/report.json`.

    Args:
        case: what is left out of what.
        out: for everything that is made but prepared data.
        data: the folder of prepared data sets.
        rounds: how often the domain is added, each time under another name.

    Raises:
        MdctrError: a step failed.
    """
    console = Console(stderr=True)
    recipe = Recipe.load(Path(str(resources("training"))) / "recipes" / f"plate_{case.data}.yaml")
    runs = out / f"{case.data}-{case.domain}"

    console.rule(f"train without {case.domain}, and export")
    others = _keeping("others", case, recipe)
    metrics, folder = _train(others, runs, data)
    bundle = build(*checkpoint.load(folder, data), out / "bundles")
    frame = left_out.open(left_out.Options.model_validate(others.data.options)).file()
    file = runs / f"{case.domain}.parquet"
    frame.write_parquet(file)
    *_, test = newcomer.split(frame.height, frame["time"].to_numpy().astype(np.float64), 0)
    held = frame[test]

    timed = []
    with redis_server() as store:
        _export("publish", str(bundle.path), "--store", store)
        with service(bundle.path, store, runs / "service.log") as url:
            for at in range(rounds):
                console.rule(f"add {case.domain}, round {at + 1} of {rounds}")
                name = case.domain if not at else f"{case.domain}-{at + 1}"
                arguments = ["--data", str(file), "--bundle", str(bundle.path), "--store", store]
                request = next(requests(held[:1], bundle.schema, name, CANDIDATES))
                timed.append(_add(name, arguments, First(url, request)))
            console.rule("every held-out row over HTTP")
            added = _over_http(url, bundle, case.domain, held)

    console.rule(f"train on {case.domain} alone, and with everything")
    alone = {lr: _train(_alone(case, recipe, lr), runs, data) for lr in SCRATCH_LR}
    scratch = max(alone, key=lambda lr: float(alone[lr][0]["valid"]["macro"]["pack"]["auc"]))
    _, folder = _train(_keeping("all", case, recipe), runs, data)
    about = checkpoint.load(folder, data)[1].about
    scores = {
        "general": _general(bundle, file),
        "added": added,
        "scratch": _of_run(alone[scratch][1], data, case.domain),
        "joint": _of_run(folder, data, case.domain),
    }
    label = held["label"].to_numpy()
    if any(not np.array_equal(each.label, label) for each in scores.values()):
        raise BenchError("the models were not judged on the same rows")

    first = timed[0]["report"]
    report = {
        "data": case.data,
        "domain": case.domain,
        "protocol": about.protocol,
        "bundle": bundle.manifest.bundle,
        "macro_auc_of_the_others": metrics["macro"]["pack"]["auc"],
        "rows": first["rows"],
        "epochs": first["epochs"],
        "best_epoch": first["best_epoch"],
        "stayed_general": first["stayed_general"],
        "unknown_items": first["unknown_items"],
        "unseen_items": first["unseen_items"],
        "seconds_to_first_answer": [each["first_answer"] for each in timed],
        "seconds_of_command": [each["command"] for each in timed],
        "seconds_within": [each["report"]["seconds"] for each in timed],
        "quality": {name: each.quality() for name, each in scores.items()},
        "auc_of_added_by_torch": first["quality"]["test"]["pack"]["auc"],
        "auc_above": {name: scores["added"].above(each) for name, each in scores.items() if name != "added"},
        "scratch_lr": scratch,
        "oracle_auc": about.oracle_auc.get(case.domain),
        "pack_bytes": first["bytes"],
        "parameters": bundle.manifest.parameters,
        "parameters_tuned": bundle.manifest.parameters_tuned,
    }
    for path in (runs / "report.json", out / "report.json"):  # this case's, and the last one's
        files.write(path, json.dumps(report, indent=1))
    return report


def _keeping(keeps: str, case: Case, recipe: Recipe) -> Recipe:
    """The recipe on some of the data: without the domain, on it alone, or on everything."""
    options = {**recipe.data.options, **case.options}
    wrapped = {"source": case.data, "options": options, "domain": case.domain, "keeps": keeps}
    return recipe.model_copy(update={"data": Choice(name="loadtest.left_out", **wrapped)})


def _alone(case: Case, recipe: Recipe, lr: float) -> Recipe:
    """One model of all parameters for the domain, with an early stop of its own."""
    options = {"epochs": 30, "patience": 3, "lr": lr, "schedule": "constant"}
    changes = {
        "paradigm": Choice(name="mix"),
        "general_share": 0.0,
        "joint": recipe.joint.model_copy(update=options),
    }
    return _keeping("domain", case, recipe).model_copy(update=changes)


def _train(recipe: Recipe, runs: Path, data: Path) -> tuple[dict[str, Any], Path]:
    """The metrics of a run and its folder; it is trained unless it is there."""
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]
    folder = runs / f"{recipe.data.options['keeps']}-{digest}"
    prepared = prepare(recipe.data.name, recipe.data.options, data)
    run = Run(folder, recipe, prepared)
    with progress() as bars:
        Fit(recipe, prepared, run, bars)()
    return run.metrics or {}, folder


def _export(*arguments: str) -> str:
    """Run a command of `python -m export` as a user would; returns what it printed."""
    command = [sys.executable, "-m", "export", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"`python -m export {' '.join(arguments)}` ended with exit code {done.returncode}")
    return done.stdout


class First(threading.Thread):
    """Sends a request over and over until a pack answers it."""

    def __init__(self, url: str, request: Request) -> None:
        super().__init__(daemon=True)
        self.url, self.request = url, request
        self.stopped = threading.Event()
        self.moment: float | None = None

    def run(self) -> None:
        """Until there is an answer, or `stopped`."""
        with httpx2.Client(base_url=self.url) as client:
            while not self.stopped.wait(_PAUSE):
                response = client.post(self.request.path, content=self.request.body, headers=JSON)
                if response.status_code == httpx2.codes.OK:
                    self.moment = time.perf_counter()
                    return


def _add(name: str, arguments: Sequence[str], first: First) -> dict[str, Any]:
    """Add the domain; the command's report, and seconds until it ended and until the first answer."""
    began = time.perf_counter()
    first.start()
    try:
        report = json.loads(_export("add-domain", name, *arguments, "--json"))
        ended = time.perf_counter()
        first.join(_WAIT)
    finally:
        first.stopped.set()
        first.join()
    if first.moment is None:
        raise BenchError(f"no answer for {name} within {_WAIT:g} s of the command's end")
    return {"report": report, "command": ended - began, "first_answer": first.moment - began}


def _over_http(url: str, bundle: Bundle, domain: str, held: pl.DataFrame) -> Scores:
    probability = np.full(held.height, np.nan)
    with httpx2.Client(base_url=url) as client:
        for request in requests(held, bundle.schema, domain, CANDIDATES):
            response = client.post(request.path, content=request.body, headers=JSON)
            if response.status_code != httpx2.codes.OK:
                raise BenchError(f"{request.path} answered {response.status_code}: {response.text}")
            probability[request.rows] = response.json()["probabilities"]
    return Scores(np.log(probability) - np.log1p(-probability), held["label"].to_numpy())


def _general(bundle: Bundle, file: Path) -> Scores:
    """By torch, under the bundle's general pack."""
    rows = newcomer.read(file, bundle.schema, bundle.items, 0).parts["test"].rows
    _, data = next(bundle.packs())
    a, b = DomainPack.from_bytes(data).calibration.tolist()
    return Scores(a * logits(rebuild(bundle).servable, {}, rows).double().numpy() + b, rows.label.numpy())


def _of_run(folder: Path, data: Path, domain: str) -> Scores:
    """By torch, of a run's own pack for the domain."""
    _, prepared, model, _ = checkpoint.load(folder, data)
    rows = Labelled.of(prepared, "test").rows.of(model.domains.index(domain))
    return Scores(model.calibrated(model.logits(rows, domain).numpy(), domain), rows.label.numpy())


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    table = Table(
        f"{report['domain']}, held-out rows", "AUC", "log loss", "ECE", "AUC of add-domain above it"
    )
    names = {
        "general": "general pack, domain never seen",
        "added": "add-domain, over HTTP",
        "scratch": "from scratch on the domain alone",
        "joint": "with the domain in both stages",
    }
    for name, label in names.items():
        figures = (report["quality"][name][figure] for figure in _MEASURES)
        gap = report["auc_above"].get(name)
        above = f"{gap['auc']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})" if gap else ""
        table.add_row(label, *(f"{figure:.4f}" for figure in figures), above)
    if report["oracle_auc"] is not None:
        table.add_row("best possible", f"{report['oracle_auc']:.4f}", "", "", "")
    console.print(table)
    seconds = report["seconds_to_first_answer"]
    median = sorted(seconds)[len(seconds) // 2]
    within = report["seconds_within"][seconds.index(median)]
    parts = ", ".join(f"{spent:.1f} {what}" for what, spent in within.items())
    console.print(
        f"from the command's start to the first answer: {median:.1f} s (median of "
        f"{len(seconds)}; {min(seconds):.1f} to {max(seconds):.1f}), of which {parts}\n"
        f"{sum(report['rows'].values()):,} rows, {report['rows']['train']:,} to train; epoch "
        f"{report['best_epoch']} of {report['epochs']}; {report['unseen_items']:.1%} of rows with an item "
        f"that the bundle's training has not seen; the pack has {report['pack_bytes']:,} bytes",
        soft_wrap=True,
    )

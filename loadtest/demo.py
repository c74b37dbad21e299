"""The whole house, once: data, two training stages, export, publication, service, answers, a swap."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console

from export.bundle import make_packs
from loadtest.redis_server import redis_server
from loadtest.replay import Request, requests
from loadtest.server import service
from service.contract import files
from service.contract.bundle import Bundle
from service.contract.errors import MdctrError
from service.contract.pack import version
from service.stores._open import open_store
from training import checkpoint
from training.__main__ import progress
from training.data.batches import Rows
from training.data.prepare import Prepared
from training.distil import Targets
from training.fit import Fit
from training.metrics import auc, logloss
from training.model import Model
from training.recipe import Recipe

CANDIDATES = 1000
JSON = {"content-type": "application/json"}


class DemoError(MdctrError):
    """A step of the demo failed."""


@dataclass(frozen=True)
class House:
    """A trained run, its bundle, and the service that answers from it."""

    run: Path
    recipe: Recipe
    prepared: Prepared
    model: Model
    bundle: Bundle
    store: str
    url: str


@dataclass
class Answers:
    """What the service said about one domain's rows."""

    probability: npt.NDArray[np.float64]
    """(n,)."""
    seconds: list[float] = field(default_factory=list)
    """One a request."""


def demo(recipe_path: Path, folder: Path) -> dict[str, Any]:
    """Run it all and return the report, which is also written to `folder/report.json`.

    Args:
        recipe_path: what to train.
        folder: for everything that is made, prepared data apart, which lies beside it.

    Raises:
        DemoError: a step failed.
    """
    began = time.perf_counter()
    console = Console(stderr=True)
    recipe = Recipe.load(recipe_path)
    run = folder / f"run-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}"
    prepared_root, bundles = folder.parent / "data", folder / "bundles"

    taught = recipe.distil is not None
    console.rule("prepare and train, a teacher first" if taught else "prepare and train, both stages")
    fit = ("training", "fit", str(recipe_path), "--data", str(prepared_root), "--out")
    _python(*fit, str(run), show=True)
    if taught:
        console.rule("the student without its teacher")
        _python(*fit, f"{run}-without", "--distil", "null", show=True)
    console.rule("export")
    built = _python("export", "build", str(run), "--out", str(bundles), "--data", str(prepared_root))
    bundle = Bundle.open(Path(built.splitlines()[-1]))
    recipe, prepared, model, metrics = checkpoint.load(run, prepared_root)

    with redis_server() as store:
        console.rule("publish and serve")
        console.print(_python("export", "publish", str(bundle.path), "--store", store))
        with service(bundle.path, store, folder / "service.log") as url:
            console.rule("every test row over HTTP")
            house = House(run, recipe, prepared, model, bundle, store, url)
            domains, seconds = _replay(house, console)
            console.rule("a pack tuned anew and promoted while requests flow")
            swap = _swap(house, folder / f"{run.name}-seed-{recipe.seed + 1}")

    p50, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 99])
    report = {
        "data": prepared.about.source,
        "bundle": bundle.manifest.bundle,
        "protocol": prepared.about.protocol,
        "domains": domains,
        "macro_auc_http": float(np.mean([found["auc_http"] for found in domains.values()])),
        "macro_logloss_http": float(np.mean([found["logloss_http"] for found in domains.values()])),
        "requests": len(seconds),
        "latency_p50_ms": float(p50),
        "latency_p99_ms": float(p99),
        "distilled": _distilled(recipe, run, prepared_root, metrics),
        "parameters": bundle.manifest.parameters,
        "parameters_of_domain": bundle.manifest.parameters_of_domain,
        "pack_bytes": {domain: len(pack) for domain, pack in bundle.packs()},
        "swap": swap,
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def _distilled(recipe: Recipe, run: Path, data: Path, metrics: Mapping[str, Any]) -> dict[str, float] | None:
    """Macro AUC of a student, of its teacher, and of the student without it; None where there is none."""
    if recipe.distil is None:
        return None
    with progress() as bars:
        targets = Targets.make(recipe.distil, run.parent / "teachers", data, bars)
    runs = {"teacher": targets.folder.parent, "without": run.with_name(f"{run.name}-without")}
    found = {"student": metrics} | {name: checkpoint.load(each, data)[3] for name, each in runs.items()}
    return {name: float(each["macro"]["pack"]["auc"]) for name, each in found.items()}


def _python(module: str, *arguments: str, show: bool = False) -> str:
    """Run a command as a user would; its progress goes to stderr, its result is returned."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=None if show else subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise DemoError(f"`python -m {module} {' '.join(arguments)}` ended with exit code {done.returncode}")
    return done.stdout or ""


def _replay(house: House, console: Console) -> tuple[dict[str, dict[str, Any]], list[float]]:
    """Each domain's test rows: quality by HTTP and by torch, and how far the two are apart."""
    prepared, model = house.prepared, house.model
    test = prepared.split("test")
    domains: dict[str, dict[str, Any]] = {}
    seconds: list[float] = []
    with httpx2.Client(base_url=house.url) as client:
        for domain in prepared.domains:
            frame = test.filter(pl.col("domain") == domain)
            answers = _answers(client, list(requests(frame, model.schema, domain, CANDIDATES)), frame.height)
            rows = Rows.encode(frame, model.schema, model.domains)
            expected = _served(model, rows, domain)
            label = rows.label.numpy()
            logit = np.log(answers.probability) - np.log1p(-answers.probability)
            domains[domain] = {
                "rows": frame.height,
                "auc_http": auc(answers.probability, label),
                "auc_torch": auc(expected, label),
                "auc_oracle": prepared.about.oracle_auc.get(domain),
                "logloss_http": logloss(logit, label),
                "max_abs_diff": float(np.abs(answers.probability - expected).max()),
            }
            seconds += answers.seconds
            console.print(f"{domain}: {frame.height:,} rows in {len(answers.seconds):,} requests")
    return domains, seconds


def _answers(client: httpx2.Client, wanted: list[Request], rows: int) -> Answers:
    answers = Answers(np.full(rows, np.nan))
    for request in wanted:
        began = time.perf_counter()
        response = client.post(request.path, content=request.body, headers=JSON)
        answers.seconds.append(time.perf_counter() - began)
        if response.status_code != httpx2.codes.OK:
            raise DemoError(f"{request.path} answered {response.status_code}: {response.text}")
        answers.probability[request.rows] = response.json()["probabilities"]
    if np.isnan(answers.probability).any():
        raise DemoError("some rows were not answered")
    return answers


class Probe(threading.Thread):
    """Sends one request over and over, and notes when the answer's pack, and its scores, change."""

    def __init__(self, url: str, request: Request) -> None:
        super().__init__(daemon=True)
        self.url, self.request = url, request
        self.stopped = threading.Event()
        self.sent = self.failed = 0
        self.seen: dict[str, float] = {}
        """Pack version -> the moment of its first answer."""
        self.scores: dict[str, set[tuple[float, ...]]] = {}
        """Pack version -> every distinct vector of scores answered under it."""

    def run(self) -> None:
        """Until `stopped`."""
        with httpx2.Client(base_url=self.url) as client:
            while not self.stopped.is_set():
                self.sent += 1
                response = client.post(self.request.path, content=self.request.body, headers=JSON)
                if response.status_code != httpx2.codes.OK:
                    self.failed += 1
                    continue
                answer = response.json()
                self.seen.setdefault(answer["pack"], time.perf_counter())
                self.scores.setdefault(answer["pack"], set()).add(tuple(answer["probabilities"]))
                time.sleep(0.001)


def _swap(house: House, folder: Path) -> dict[str, Any]:
    """Tune the smallest domain with another seed, promote it under traffic, and compare with torch."""
    prepared = house.prepared
    domain = min(prepared.domains, key=lambda name: prepared.about.parts[name]["train"].rows)
    frame = prepared.split("test").filter(pl.col("domain") == domain)
    request = max(requests(frame, prepared.schema, domain, CANDIDATES), key=lambda each: len(each.rows))
    probe = Probe(house.url, request)
    probe.start()
    try:
        again = house.recipe.model_copy(update={"seed": house.recipe.seed + 1})
        branch = checkpoint.branch(house.run, folder, again, prepared, anew=domain)
        with progress() as bars:
            model = Fit(again, prepared, branch, bars)()
        manifest = house.bundle.manifest
        (pack,) = make_packs(model, prepared, manifest.bundle, manifest.inputs, only=domain)
        data = pack.to_bytes()
        promoted = asyncio.run(_promote(house.store, manifest.bundle, domain, data))
        deadline = time.perf_counter() + 10
        while version(data) not in probe.seen and time.perf_counter() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # some answers under the new pack
    finally:
        probe.stopped.set()
        probe.join()
    if version(data) not in probe.seen:
        raise DemoError(f"the new pack of {domain} was promoted, but no answer came from it within 10 s")
    rows = Rows.encode(frame[request.rows], model.schema, model.domains)
    expected = _served(model, rows, domain)
    found = np.array(sorted(probe.scores[version(data)]))
    before = next(iter(probe.scores))
    return {
        "domain": domain,
        "from": before,
        "to": version(data),
        "requests": probe.sent,
        "failed": probe.failed,
        "promote_to_visible_ms": (probe.seen[version(data)] - promoted) * 1e3,
        "scores_moved_by": float(np.abs(found[0] - np.array(sorted(probe.scores[before]))[0]).max()),
        "max_abs_diff": float(np.abs(found - expected).max()),
    }


def _served(model: Model, rows: Rows, domain: str) -> npt.NDArray[np.float64]:
    """Probabilities (n,) as torch computes them."""
    logit = model.calibrated(model.logits(rows, domain).numpy(), domain)
    return np.exp(-np.logaddexp(0, -logit))


async def _promote(url: str, bundle: str, domain: str, data: bytes) -> float:
    """Put and promote; returns the moment before the promotion."""
    store = open_store(url, bundle)
    try:
        name = await store.put(domain, data)
        moment = time.perf_counter()
        await store.promote({domain: name})
        return moment
    finally:
        await store.close()

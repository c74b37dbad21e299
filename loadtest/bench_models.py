"""What models cost to serve: each exported, published, served, compared with torch, and timed.

Every row of a comparison is a bundle with a service of its own on one core; one Redis has the packs of all.
Every test row goes over HTTP. Then all are asked in turn, in interleaved rounds, and a ratio is the median of
the rounds' ratios to the first model. Beside it stands the core's time that a request takes in the service,
which other work on the machine moves less than requests/s; and how long answers took, of all rounds.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.progress import Progress, track

from export.bundle import build
from export.publish import publish
from loadtest.closed import Closed
from loadtest.cores import conditions, divide, on
from loadtest.fleet import BenchError, Fleet
from loadtest.redis_server import redis_server
from loadtest.replay import requests
from loadtest.sender import request
from loadtest.sheet import Sheet
from loadtest.stage import Stage
from loadtest.traffic import JSON, Asked
from service.contract import files
from service.contract.bundle import Bundle
from service.stores._open import open_store
from training import checkpoint
from training.checkpoint import Run
from training.compare import merged
from training.data.batches import Rows
from training.data.prepare import prepare
from training.fit import Fit
from training.metrics import auc
from training.model import Model
from training.plan import Plan
from training.recipe import Recipe, parse

Floats = npt.NDArray[np.float64]

_PLAN, _BASE = "kuairand_models", "plate_synthetic"
_MOST = 1000
"""Candidates of a request of test rows."""
_REQUESTS = 32
"""Different ones that are timed."""
_RESAMPLES = 500
_DEADLINE_MS = 60_000
"""A language model must not be refused for being slow."""


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    candidates: int = 100
    rounds: int = 60
    seconds: float = 0.1
    """Of a model in a round."""
    connections: int = 4
    """Of a client, so that the service never waits for it."""


@dataclass
class _Timed:
    """What one model did."""

    rps: list[float] = field(default_factory=list)
    """By round."""
    answers: int = 0
    core_seconds: float = 0.0
    seconds: list[Floats] = field(default_factory=list)
    """By round, of each answer."""

    def within(self, share: float, rounds: Sequence[int] | None = None) -> float:
        """The milliseconds within which this share of some rounds' answers was there; of all rounds'."""
        chosen = self.seconds if rounds is None else [self.seconds[at] for at in rounds]
        return float(np.quantile(np.concatenate(chosen), share)) * 1e3


def compared(folder: Path) -> dict[str, Path]:
    """The runs of a comparison's first seed, by row; none where there is no comparison."""
    path = folder / "report.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    return {name: folder / row["runs"][0] for name, row in rows.items()}


def quick(folder: Path, data: Path, change: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """The same models, each trained for an epoch on simulated clicks.

    Args:
        folder: for the runs.
        data: the folder of prepared data sets.
        change: what is otherwise in the recipe.
    """
    shipped = Path(str(resources("training")))
    base = Recipe.load(shipped / "recipes" / f"{_BASE}.yaml").model_dump(mode="json")
    base = merged(base, {"joint": {"epochs": 1}, "tuning": {"epochs": 0}, **(change or {})})
    runs = {}
    for name, row in Plan.load(shipped / "plans" / f"{_PLAN}.yaml").rows.items():
        recipe = parse(Recipe, merged(base, row.change), name)
        prepared = prepare(recipe.data.name, recipe.data.options, data)
        runs[name] = folder / _slug(name)
        with Progress(disable=True) as bars:
            Fit(recipe, prepared, Run(runs[name], recipe, prepared), bars)()
    return runs


def bench(
    size: Size,
    runs: Mapping[str, Path],
    data: Path,
    folder: Path,
    console: Console,
    *,
    whole: Collection[str] = (),
) -> dict[str, Any]:
    """Every run, the first of which the others are compared with; the report is also `folder/report.json`.

    A run that is there twice is exported once and served twice: how far the two are apart is noise.

    Args:
        size: how much is timed.
        runs: complete runs on the same data, by the model's name.
        data: the folder of prepared data sets.
        folder: for the report and logs.
        console: for progress.
        whole: models that compute all of a candidate in the request, nothing of an item in advance.

    Raises:
        BenchError: a service did not answer.
    """
    began = time.perf_counter()
    about, cores = conditions(), divide(1)
    models, bodies = {}, {}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdctr-bench-")))
        store = stack.enter_context(redis_server())
        ports, bundles = {}, dict[Path, Bundle]()
        for name, run in runs.items():
            recipe, prepared, model, metrics = checkpoint.load(run, data)
            halves = False if name in whole else None
            if run not in bundles:
                bundles[run] = build(recipe, prepared, model, metrics, place, item_halves=halves)
            bundle = bundles[run]
            made = Stage(bundle, model, store, folder / _slug(name))
            made.folder.mkdir(parents=True, exist_ok=True)
            nbytes = asyncio.run(_publish(made))
            ports[name] = stack.enter_context(made.serve(cores.server, deadline_ms=str(_DEADLINE_MS)))
            bodies[name] = _timed_requests(bundle, prepared.split("test"), size.candidates)
            domains = _domains(ports[name], model, prepared.split("test"))
            models[name] = {
                "parameters": bundle.manifest.parameters,
                "parameters_of_domain": bundle.manifest.parameters_of_domain,
                "pack_bytes": nbytes,
                "domains": domains,
                "macro_auc_http": float(np.mean([found["auc_http"] for found in domains.values()])),
                "max_abs_diff": max(found["max_abs_diff"] for found in domains.values()),
            }
            console.print(f"{name}: largest difference from torch {models[name]['max_abs_diff']:.1e}")
        timed = _rounds(size, ports, bodies, console)
    first = timed[next(iter(runs))]
    for name, each in timed.items():
        low, middle, high = np.percentile(np.array(each.rps) / np.array(first.rps), [10, 50, 90])
        models[name] |= {
            "rps": float(np.median(each.rps)),
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "core_us": each.core_seconds / each.answers * 1e6,
            "answers": each.answers,
            "p50_ms": each.within(0.5),
            "p99_ms": each.within(0.99),
            "p50_ratio": _slower(each, first, 0.5),
            "p99_ratio": _slower(each, first, 0.99),
        }
    report = {
        "data": prepared.about.source,
        "models": models,
        "notes": [] if cores.apart else ["client and server share a core"],
        "conditions": about,
        "size": asdict(size),
        "seconds": time.perf_counter() - began,
    }
    files.write(folder / "report.json", json.dumps(report, indent=1))
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a page."""
    return _table(report).markdown()


def show(report: Mapping[str, Any], console: Console) -> None:
    """A row a model."""
    _table(report).show(console)
    for note in report["notes"]:
        console.print(f"note: {note}", soft_wrap=True)


def _table(report: Mapping[str, Any]) -> Sheet:
    first, *_ = models = report["models"]
    heads = ["model", *(f"AUC {domain}" for domain in models[first]["domains"]), "macro AUC"]
    heads += ["largest difference", f"requests/s, times {first}'s", "80 % of rounds"]
    heads += ["core time of a request, us", "pack, bytes"]
    lines = []
    for name, found in models.items():
        aucs = (each["auc_http"] for each in found["domains"].values())
        lines.append(
            [
                name,
                *(f"{value:.4f}" for value in (*aucs, found["macro_auc_http"])),
                f"{found['max_abs_diff']:.1e}",
                f"{found['ratio']:.2f}",
                f"{found['ratio_low']:.2f} to {found['ratio_high']:.2f}",
                f"{found['core_us']:.0f}",
                f"{found['pack_bytes']:,.0f}",
            ]
        )
    return Sheet(heads, lines)


async def _publish(made: Stage) -> float:
    """Put and promote; gives the bytes of a domain's pack as stored, on average."""
    store = open_store(made.store, made.bundle.manifest.bundle)
    try:
        _general, *packs = await publish(made.bundle, store)
    finally:
        await store.close()
    return float(np.mean([pack.nbytes for pack in packs]))


def _domains(port: int, model: Model, test: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Every test row: quality by HTTP and by torch, and how far the two are apart."""
    found = {}
    for domain in model.domains:
        frame = test.filter(pl.col("domain") == domain)
        rows = Rows.encode(frame, model.schema, model.domains)
        logit = model.calibrated(model.logits(rows, domain).numpy(), domain)
        expected, label = np.exp(-np.logaddexp(0, -logit)), rows.label.numpy()
        answered = _answers(port, frame, model, domain)
        found[domain] = {
            "rows": frame.height,
            "auc_http": auc(answered, label),
            "auc_torch": auc(expected, label),
            "max_abs_diff": float(np.abs(answered - expected).max()),
        }
    return found


def _answers(port: int, frame: pl.DataFrame, model: Model, domain: str) -> Floats:
    """Probabilities (n,) of a domain's rows."""
    answered = np.full(frame.height, np.nan)
    with closing(Closed(port)) as client:
        for each in requests(frame, model.schema, domain, _MOST):
            status, body = client.ask(request("POST", each.path, each.body, JSON))
            if status != 200:
                raise BenchError(f"{each.path} answered {status}: {body[:200].decode(errors='replace')}")
            answered[each.rows] = json.loads(body)["probabilities"]
    if np.isnan(answered).any():
        raise BenchError(f"some rows of {domain} were not answered")
    return answered


def _timed_requests(bundle: Bundle, test: pl.DataFrame, candidates: int) -> list[bytes]:
    """The users of the first test rows, with any items as candidates, for the first domain."""
    draw = np.random.default_rng(0)
    fields = [slot.field for slot in bundle.schema.scope("request")]
    asked = []
    for row in test.head(_REQUESTS).iter_rows(named=True):
        user, context = (
            {field.name: row[field.key] for field in fields if field.owner == owner}
            for owner in ("user", "context")
        )
        ids = tuple(draw.choice(bundle.items.keys, candidates).tolist())
        asked.append(Asked(bundle.manifest.domains[0], user, context, ids).http)
    return asked


def _rounds(
    size: Size, ports: Mapping[str, int], bodies: Mapping[str, Sequence[bytes]], console: Console
) -> dict[str, _Timed]:
    """Every model in every round."""
    timed = {name: _Timed() for name in ports}
    process = {name: _worker(port) for name, port in ports.items()}
    order, draw = [*ports], np.random.default_rng(0)

    def ask(name: str) -> None:
        # A service closes what is idle for seconds, so each slice has connections of its own.
        before = _core_seconds(process[name])
        with closing(Closed(ports[name], size.connections)) as client:
            rps, seconds = client.run(bodies[name], size.seconds)
        each = timed[name]
        each.rps.append(rps)
        each.answers += len(seconds)
        each.seconds.append(seconds)
        each.core_seconds += _core_seconds(process[name]) - before

    with on(divide(1).client):
        for name in order:
            ask(name)
            timed[name] = _Timed()  # that was to warm it up
        for _ in track(range(size.rounds), f"{size.candidates} candidates", console=console):
            # None always comes after the same one, which may leave the caches cold.
            for place in draw.permutation(len(order)):
                ask(order[place])
    return timed


def _slower(one: _Timed, other: _Timed, share: float) -> list[float]:
    """How many times as long one's answers took, with 95 % of resamples of the rounds."""
    rounds = np.random.default_rng(0).integers(len(one.seconds), size=(_RESAMPLES, len(one.seconds)))
    drawn = [one.within(share, some) / other.within(share, some) for some in rounds.tolist()]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return [one.within(share) / other.within(share), low, high]


def _worker(port: int) -> int:
    (process,) = Fleet(f"http://127.0.0.1:{port}", 1).workers()
    return process


def _core_seconds(process: int) -> float:
    """What a process has had of cores until now: its clock as clock_getcpuclockid(3) names it."""
    return time.clock_gettime((~process << 3) | 2)


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")

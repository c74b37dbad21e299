"""What scoring costs under each model of the comparison, by the service's own code and without HTTP.

Every row of the plan is trained for an epoch on few rows, exported, and opened as the service does it. Time
does not depend on what a model has learnt, so that is enough. Then all are asked in turn on one thread, in
interleaved rounds: users of test rows, any items of the table as candidates. A round's figure is the median
of its requests, a model's the median of its rounds, and a ratio is taken within a round, since a shared
machine is not always as fast.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files as resources
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import polars as pl
from rich.console import Console
from rich.progress import Progress, track

from export.bundle import build
from loadtest.cores import conditions
from loadtest.sheet import Sheet
from loadtest.traffic import Asked
from service.contract import files
from service.contract.bundle import Bundle
from service.contract.errors import BundleError, RunError, UnknownOption
from service.contract.pack import version
from service.engines import ort
from service.features import RequestEncoder
from service.resident import Resident, load, parse
from service.scoring import Scorer
from service.settings import Settings
from training.checkpoint import Run
from training.compare import merged
from training.data.prepare import SPLITS, Prepared, prepare
from training.fit import Fit
from training.plan import Plan
from training.recipe import Recipe
from training.recipe import parse as validated

AGAINST = "Mix"
"""The row that others' ratios are to."""
SYNTHETIC = "synthetic"
_PLAN = "results"
_SHORT = {"joint": {"epochs": 1, "batch": 32}, "tuning": {"epochs": 1}}
"""Small batches, so that BatchNorm's statistics settle: else scores are too large to compare with torch's."""
_TOLERANCE = float(Settings.model_fields["golden_tolerance"].default)

Rounds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    candidates: tuple[int, ...] = (100, 500)
    rounds: int = 60
    seconds: float = 0.01
    """Of a model in a round, with each number of candidates."""
    requests: int = 32
    """Different ones of a number, in turn: those asked again would find their items' rows in the cache."""
    rows: int = 512
    """Of a domain and a split, that models are trained and judged on."""


@dataclass(frozen=True)
class Served:
    """A model as the service holds it."""

    bundle: Bundle
    scorer: Scorer
    pack: Resident
    asked: Mapping[int, Sequence[Asked]]
    """By number of candidates."""

    def seconds(self, candidates: int, calls: int) -> Rounds:
        """Of each of so many requests: all of it, and the engine's part (2, calls)."""
        found, turns = np.empty((2, calls)), cycle(self.asked[candidates])
        for at in range(calls):
            asked = next(turns)
            began = time.perf_counter()
            ranking = self.scorer.rank(self.pack, asked.user, asked.context, asked.ids, {})
            found[:, at] = time.perf_counter() - began, ranking.engine_seconds
        return found


def recipes(data: str, change: Mapping[str, Any] | None = None) -> dict[str, Recipe]:
    """What each row of the plan trains on a data set, for an epoch.

    Args:
        data: a subject of the plan, or `synthetic` for all of its rows on simulated clicks.
        change: what else is otherwise in the recipes.

    Raises:
        UnknownOption: there is no such data.
    """
    shipped = Path(str(resources("training")))
    plan = Plan.load(shipped / "plans" / f"{_PLAN}.yaml")
    if data not in {SYNTHETIC, *plan.subjects}:
        raise UnknownOption(f"no such data: {data}; there are {', '.join((SYNTHETIC, *plan.subjects))}")
    base = Recipe.load(shipped / "recipes" / f"{plan.recipe}.yaml").model_dump(mode="json")
    rows: Sequence[str] = [*plan.rows]
    if data == SYNTHETIC:
        base = merged(base, {"data": {"name": SYNTHETIC}})
    else:
        subject = plan.subjects[data]
        base = merged({**base, "data": dict(subject.source)}, subject.change)
        rows = subject.rows or rows
    base = merged(merged(base, _SHORT), change or {})
    return {name: validated(Recipe, merged(base, plan.rows[name].change), name) for name in rows}


def bench(
    size: Size, models: Mapping[str, Recipe], data: Path, folder: Path, console: Console
) -> dict[str, Any]:
    """Build them all, then time them; the report is also `folder/report.json`.

    Args:
        size: how much is timed.
        models: recipes on the same data, by row; one is `Mix`.
        data: the folder of prepared data sets.
        folder: for the report.
        console: for progress.

    Raises:
        RunError: `Mix` cannot be trained; of other rows, the report says so.
        BundleError: it cannot be exported; likewise.
    """
    began = time.perf_counter()
    about, left_out = conditions(), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="mdctr-bench-") as name:
        place, served = Path(name), dict[str, Served]()
        any_recipe = next(iter(models.values()))
        prepared = _few(
            prepare(any_recipe.data.name, any_recipe.data.options, data), size.rows, place / "data"
        )
        for at, row in enumerate(track(models, "training and exporting", console=console)):
            try:
                served[row] = _serve(models[row], prepared, place / f"model-{at}", size)
            except (RunError, BundleError) as error:
                if row == AGAINST:
                    raise
                left_out[row] = str(error)
        timed = _rounds(size, served, console)
        report = {
            "data": prepared.about.source,
            "against": AGAINST,
            "models": {row: _size(each) | _figures(row, timed, size) for row, each in served.items()},
            "left_out": left_out,
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
    """A row a model, and what is not among them."""
    _table(report).show(console)
    for row, reason in report["left_out"].items():
        console.print(f"left out: {row}: {reason}", soft_wrap=True)


def _table(report: Mapping[str, Any]) -> Sheet:
    sizes, against = report["size"]["candidates"], report["against"]
    heads = ["model", *(f"{n} candidates, us" for n in sizes), f"a candidate of {sizes[-1]}, us"]
    heads += [f"times {against}'s, {n}" for n in sizes]
    heads += [
        f"80 % of rounds, {sizes[-1]}",
        f"engine at {sizes[-1]}, us",
        "operators",
        "parameters",
        "pack, bytes",
    ]
    heads += ["item halves, bytes an item"]
    lines = []
    for row, found in report["models"].items():
        by_size = [found["candidates"][str(n)] for n in sizes]
        most = by_size[-1]
        cells = [row, *(f"{each['us']:.0f}" for each in by_size), f"{most['us_of_candidate']:.2f}"]
        cells += [f"{each['ratio']:.2f}" for each in by_size]
        cells += [f"{most['ratio_low']:.2f} to {most['ratio_high']:.2f}", f"{most['engine_us']:.0f}"]
        cells += [f"{found[name]:,}" for name in ("operators", "parameters", "pack_bytes", "item_bytes")]
        lines.append(cells)
    return Sheet(heads, lines)


def _few(prepared: Prepared, rows: int, folder: Path) -> Prepared:
    """The same data with the first rows of each domain in each split, and all of its items."""
    folder.mkdir()
    for split in SPLITS:
        frame = prepared.split(split).group_by("domain", maintain_order=True).head(rows)
        frame.write_parquet(folder / f"{split}.parquet")
    prepared.items().write_parquet(folder / "items.parquet")
    return Prepared(folder, prepared.schema, prepared.about)


def _serve(recipe: Recipe, prepared: Prepared, place: Path, size: Size) -> Served:
    """Train, export, and open what the service opens; export compares every graph with torch."""
    run = Run(place / "run", recipe, prepared)
    with Progress(disable=True) as bars:
        model = Fit(recipe, prepared, run, bars)()
    bundle = build(recipe, prepared, model, run.metrics or {}, place)
    engine, domain = ort.open(bundle, threads=1), model.domains[0]
    data = dict(bundle.packs())[domain]
    pack = load(parse(data, domain, version(data), bundle), version(data), engine, _TOLERANCE)
    scorer = Scorer(RequestEncoder(bundle, max(size.candidates)), engine)
    test = prepared.split("test").filter(pl.col("domain") == domain)
    asked = {n: [*_asked(bundle, test.head(size.requests), n)] for n in size.candidates}
    return Served(bundle, scorer, pack, asked)


def _asked(bundle: Bundle, rows: pl.DataFrame, candidates: int) -> Iterator[Asked]:
    """The users of these rows, with any items as candidates: ids alone, as a body brings them."""
    draw = np.random.default_rng(candidates)
    fields = [slot.field for slot in bundle.schema.scope("request")]
    for row in rows.iter_rows(named=True):
        user, context = (
            {field.name: row[field.key] for field in fields if field.owner == owner}
            for owner in ("user", "context")
        )
        ids = tuple(draw.choice(bundle.items.keys, candidates).tolist())
        yield Asked(rows["domain"][0], user, context, ids)


def _rounds(size: Size, served: Mapping[str, Served], console: Console) -> dict[tuple[str, int], Rounds]:
    """Medians by row and number of candidates: of a request, and of the engine's part (2, rounds)."""
    turns, draw = [(row, n) for row in served for n in size.candidates], np.random.default_rng(0)
    calls = {}
    for row, n in turns:
        served[row].seconds(n, size.requests)
        usual = np.median(served[row].seconds(n, size.requests)[0])
        calls[row, n] = max(5, round(size.seconds / usual))
    found = {turn: np.empty((2, size.rounds)) for turn in turns}
    for at in track(range(size.rounds), "timing", console=console):
        # None always comes after the same one, which may leave the caches cold.
        for place in draw.permutation(len(turns)):
            row, n = turns[place]
            found[row, n][:, at] = np.median(served[row].seconds(n, calls[row, n]), axis=1)
    return found


def _figures(row: str, timed: Mapping[tuple[str, int], Rounds], size: Size) -> dict[str, Any]:
    """By number of candidates."""
    figures = {}
    for n in size.candidates:
        whole, engine = timed[row, n]
        low, middle, high = np.percentile(whole / timed[AGAINST, n][0], [10, 50, 90]).tolist()
        figures[str(n)] = {
            "us": float(np.median(whole)) * 1e6,
            "us_of_candidate": float(np.median(whole)) * 1e6 / n,
            "engine_us": float(np.median(engine)) * 1e6,
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
        }
    return {"candidates": figures}


def _size(each: Served) -> dict[str, Any]:
    """What does not depend on the machine."""
    bundle, manifest = each.bundle, each.bundle.manifest
    halves = manifest.item_halves
    graph = bundle.graph if halves is None else bundle.path / halves.graph
    return {
        "parameters": manifest.parameters,
        "parameters_of_domain": manifest.parameters_of_domain,
        "pack_bytes": each.pack.handle.nbytes,
        "item_bytes": sum(table[0].nbytes for table in bundle.tables.values()),
        "operators": len(onnx.load(str(graph), load_external_data=False).graph.node),
        "max_abs_diff": max(found.max_abs_diff for found in manifest.parity),
    }

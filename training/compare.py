"""Compare models on the same rows: settings chosen on validation, then several seeds, then one report.

A plan names rows of a table; each is a base recipe with some values changed. Every row gets the same
budget: first the joint settings are tried (no tuning, first seed, macro AUC on validation), then, under
the best of them, the tuning settings. The winner is trained with every seed. Test rows are looked at only
in the report. Each run lies in a folder named by its recipe, so a comparison that was killed goes on, and
runs that rows have in common are trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import Progress

from service.contract import files
from service.contract.errors import RunError
from training.checkpoint import Run
from training.data.prepare import Prepared, prepare
from training.fit import Fit
from training.recipe import Recipe, parse

Changes = dict[str, Any]
_FIGURES = ("auc", "gauc", "logloss", "ne", "ece")


class Row(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    change: Changes = {}
    """What differs from the base recipe, data apart; a changed `name` replaces the whole choice."""
    joint_of: str | None = None
    """Take the joint settings that were chosen for this row, because the joint stage is the same, or because
    a curve should show one change alone."""
    candidate: bool = False
    """Whether the row may be chosen as the best on validation."""


class Curve(BaseModel):
    """A figure: macro AUC of some rows over a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    """Of the x axis, with its unit."""
    points: dict[str, float]
    """Row -> x."""


class Plan(BaseModel):
    """A comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    """The base, a file of `training/recipes` without its ending."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    joint: tuple[Changes, ...] = ({},)
    """Settings of the joint stage to try."""
    tuning: tuple[Changes, ...] = ({},)
    """Settings of the tuning stage to try."""
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    curves: dict[str, Curve] = {}
    bars: dict[str, tuple[str, ...]] = {}
    """Figures of macro AUC: title -> rows."""
    sizes: tuple[str, ...] = ()
    """Rows of the figure of macro AUC over a pack's bytes."""

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            RunError: it cannot be read, or a value is wrong; the text names the place.
        """
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RunError(f"cannot read plan {path}: {' '.join(str(error).split())}") from error
        plan = parse(cls, data, "plan")
        if strange := [name for name, row in plan.rows.items() if "data" in row.change]:
            raise RunError(f"plan: rows on other data cannot be compared: {', '.join(strange)}")
        named = {row.joint_of for row in plan.rows.values()} - {None}
        named |= {row for curve in plan.curves.values() for row in curve.points}
        named |= {row for bar in plan.bars.values() for row in bar} | set(plan.sizes)
        chained = [
            name
            for name, row in plan.rows.items()
            if row.joint_of in plan.rows and plan.rows[row.joint_of].joint_of is not None
        ]
        if chained:
            raise RunError(f"plan: joint_of must name a row that searches for itself: {', '.join(chained)}")
        if unknown := named - plan.rows.keys():
            raise RunError(f"plan: there is no row {', '.join(sorted(map(str, unknown)))}")
        return plan


@dataclass(frozen=True)
class Job:
    """One run."""

    recipe: Recipe
    folder: Path
    data: Path
    """The folder that `prepare` made."""


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with values changed at any depth; a choice of another name keeps none of its options."""
    out = dict(base)
    for key, value in change.items():
        old = out.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            out[key] = merged(old, value)
        else:
            out[key] = value
    return out


class Comparison:
    """Runs a plan in a folder."""

    def __init__(self, plan: Plan, folder: Path, data: Path, processes: int, progress: Progress) -> None:
        self.plan, self.folder = plan, folder
        self.processes, self.progress = processes, progress
        path = Path(__file__).parent / "recipes" / f"{plan.recipe}.yaml"
        recipe = Recipe.load(path)
        self.base = recipe.model_dump(mode="json")
        # Once for all runs, whose rows must be the same.
        self.data = prepare(recipe.data.name, recipe.data.options, data).path

    def __call__(self) -> dict[str, Any]:
        """Search, train, and write `report.json`."""
        joint = self._search_joint()
        tuned = self._search_tuning(joint)
        jobs = {
            (name, seed): self._job(name, {**tuned[name], "seed": seed})
            for name in self.plan.rows
            for seed in self.plan.seeds
        }
        found = self._run(jobs, "every seed")
        report = self._report(tuned, found)
        files.write(self.folder / "report.json", json.dumps(report, indent=1))
        return report

    def _search_joint(self) -> dict[str, Changes]:
        own = [name for name, row in self.plan.rows.items() if row.joint_of is None]
        jobs = {
            (name, at): self._job(
                name, {"joint": change, "tuning": {"epochs": 0}, "seed": self.plan.seeds[0]}
            )
            for name in own
            for at, change in enumerate(self.plan.joint)
        }
        found = self._run(jobs, "joint settings")
        best = {name: self.plan.joint[_best(found, name, "joint")] for name in own}
        return {name: best[row.joint_of or name] for name, row in self.plan.rows.items()}

    def _search_tuning(self, joint: Mapping[str, Changes]) -> dict[str, Changes]:
        jobs = {
            (name, at): self._job(name, {"joint": joint[name], "tuning": change, "seed": self.plan.seeds[0]})
            for name in self.plan.rows
            for at, change in enumerate(self.plan.tuning)
        }
        found = self._run(jobs, "tuning settings")
        return {
            name: {"joint": joint[name], "tuning": self.plan.tuning[_best(found, name, "pack")]}
            for name in self.plan.rows
        }

    def _job(self, name: str, settings: Changes) -> Job:
        recipe = parse(
            Recipe, merged(merged(self.base, self.plan.rows[name].change), settings), f"row {name}"
        )
        digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
        return Job(recipe, self.folder / "runs" / digest, self.data)

    def _run(self, jobs: Mapping[Any, Job], what: str) -> dict[Any, dict[str, Any]]:
        distinct = {job.folder: job for job in jobs.values()}
        bar = self.progress.add_task(what, total=len(distinct))
        context = get_context("spawn")  # torch's threads do not survive a fork
        done: dict[Path, dict[str, Any]] = {}
        with ProcessPoolExecutor(self.processes, mp_context=context) as pool:
            futures = {pool.submit(_train, job): job for job in distinct.values()}
            for future in as_completed(futures):
                done[futures[future].folder] = future.result()
                self.progress.advance(bar)
        return {key: done[job.folder] for key, job in jobs.items()}

    def _report(self, chosen: Mapping[str, Changes], found: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
        rows = {}
        for name in self.plan.rows:
            runs = [found[name, seed] for seed in self.plan.seeds]
            rows[name] = {
                **{
                    domain: _figures([run["domains"][domain] for run in runs])
                    for domain in runs[0]["domains"]
                },
                "macro": _figures([run["macro"] for run in runs]),
                "valid_macro_auc_mean": float(
                    np.mean([run["valid"]["macro"]["pack"]["auc"] for run in runs])
                ),
                "parameters": runs[0]["parameters"],
                "parameters_of_domain": runs[0]["parameters_of_domain"],
                "changed_of_domain": float(np.mean([run["changed_of_domain"] for run in runs])),
                "settings": chosen[name],
            }
        candidates = [name for name, row in self.plan.rows.items() if row.candidate] or list(rows)
        return {
            "plan": self.plan.model_dump(mode="json"),
            "seeds": list(self.plan.seeds),
            "domains": list(next(iter(found.values()))["domains"]),
            "budget_per_row": {"joint": len(self.plan.joint), "tuning": len(self.plan.tuning)},
            "chosen_on_validation": max(candidates, key=lambda name: rows[name]["valid_macro_auc_mean"]),
            "rows": rows,
        }


def _train(job: Job) -> dict[str, Any]:
    """In a process of its own."""
    prepared = Prepared.open(job.data)
    run = Run(job.folder, job.recipe, prepared)
    if run.metrics is None:
        with Progress(disable=True) as silent:
            Fit(job.recipe, prepared, run, silent)()
    metrics = run.metrics
    if metrics is None:
        raise RunError(f"{job.folder} did not complete")
    return metrics


def _best(found: Mapping[Any, dict[str, Any]], name: str, which: str) -> int:
    """The candidate with the best macro AUC on validation; the first of equals."""
    scores = {at: run["valid"]["macro"][which]["auc"] for (row, at), run in found.items() if row == name}
    return int(max(sorted(scores), key=lambda at: -np.inf if np.isnan(scores[at]) else scores[at]))


def _figures(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    out: dict[str, float] = {}
    for figure in _FIGURES:
        _add(out, figure, [run["pack"][figure] for run in runs])
    _add(out, "joint_auc", [run["joint"]["auc"] for run in runs])
    _add(out, "joint_logloss", [run["joint"]["logloss"] for run in runs])
    _add(out, "uncalibrated_logloss", [run["uncalibrated"]["logloss"] for run in runs])
    _add(out, "uncalibrated_ece", [run["uncalibrated"]["ece"] for run in runs])
    return out


def _add(out: dict[str, float], name: str, values: Iterable[float]) -> None:
    listed = np.array(list(values))
    out[f"{name}_mean"] = float(listed.mean())
    out[f"{name}_std"] = float(listed.std(ddof=1)) if len(listed) > 1 else 0.0

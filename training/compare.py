"""Compare models on the same rows: settings chosen on validation, then several seeds, then one report.

A plan names rows of a table; each is a base recipe with some values changed. Every row gets the same
budget: first the joint settings are tried (no tuning, first seed, macro AUC on validation), then, under
the best of them, the tuning settings, each with whatever else a row tries. The winner is trained with
every seed. Test rows are looked at only in the report. Each run lies in a folder named by its recipe, so a
comparison that was killed goes on, and runs that rows have in common are trained once.

A plan may have several subjects, each a data set; then it is run, and reported, on each. A row may be a
teacher of the base recipe's students. It searches nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.progress import Progress

from service.contract import files
from service.contract.errors import RunError
from training import paired, unseen
from training.checkpoint import Run
from training.data.prepare import Prepared, prepare
from training.distil import alone, whole_run
from training.fit import Fit
from training.paired import deviation
from training.plan import Changes, Distilled, Plan, Subject
from training.recipe import Choice, Recipe, parse

Floats = npt.NDArray[np.float64]
_FIGURES = ("auc", "gauc", "logloss", "ne", "ece")


@dataclass(frozen=True)
class Job:
    """One run."""

    recipe: Recipe
    folder: Path
    data: Path
    """The folder that `prepare` made."""
    unseen: Path | None = None
    """The same of rows whose domains no model has seen."""


_Run = Callable[[Mapping[Any, Job], str], dict[Any, dict[str, Any]]]


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
    """Runs a plan in a folder.

    Args:
        plan: what to compare.
        folder: of the runs and the report.
        data: of prepared data.
        processes: runs at a time.
        progress: shows it.
        only: rows to run, where not all of them.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        data: Path,
        *,
        processes: int,
        progress: Progress,
        only: Sequence[str] = (),
    ) -> None:
        if unknown := set(only) - plan.rows.keys():
            raise RunError(f"plan: there is no row {', '.join(sorted(unknown))}")
        self.plan, self.folder, self.data = plan, folder, data
        self.processes, self.progress, self.only = processes, progress, only
        path = Path(__file__).parent / "recipes" / f"{plan.recipe}.yaml"
        self.base = Recipe.load(path).model_dump(mode="json")

    def __call__(self) -> dict[str, Any]:
        """Search, train, and write `report.json`."""
        if not self.plan.subjects:
            report = self._subject(None, self.folder)
        else:
            asked = [name for name in self.plan.subjects if self._rows(name)]
            found = {name: self._subject(name, self.folder / name) for name in asked}
            report = {"plan": self.plan.model_dump(mode="json"), "subjects": [*found], **found}
        files.write(self.folder / "report.json", json.dumps(report, indent=1))
        return report

    def _subject(self, name: str | None, folder: Path) -> dict[str, Any]:
        subject = None if name is None else self.plan.subjects[name]
        one = _Subject(self.plan, subject, self.base, folder, self.data)
        return one.report(self._rows(name), self._run)

    def _rows(self, subject: str | None) -> list[str]:
        """Those that are run on a subject."""
        own = None if subject is None else self.plan.subjects[subject].rows
        return [row for row in own or self.plan.rows if not self.only or row in self.only]

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


class _Subject:
    """A plan on one data set."""

    def __init__(self, plan: Plan, subject: Subject | None, base: Changes, folder: Path, data: Path) -> None:
        self.plan, self.folder, self.data = plan, folder, data
        self.thin, self.unseen = (subject.thin, subject.unseen) if subject else ((), None)
        self.base = base
        if subject is not None:
            self.base = merged(_over(base, subject.source), subject.change)

    def report(self, rows: Sequence[str], run: _Run) -> dict[str, Any]:
        """Search, train, and compare.

        Args:
            rows: which of the plan's.
            run: runs jobs, and gives their metrics.
        """
        searching = [name for name in rows if not self.plan.rows[name].teacher]
        joint = self._search_joint(searching, run)
        found = self._search_tuning(searching, joint, run)
        chosen = {name: found.get(name, {}) for name in rows}
        jobs = {
            (name, seed): self._job(name, {**chosen[name], "seed": seed})
            for name in rows
            for seed in self.plan.rows[name].seeds or self.plan.seeds
        }
        return self._report(chosen, jobs, run(jobs, "every seed"))

    def _search_joint(self, rows: Sequence[str], run: _Run) -> dict[str, Changes]:
        own = dict.fromkeys(self.plan.rows[name].joint_of or name for name in rows)
        jobs = {
            (name, at): self._job(
                name, {"joint": change, "tuning": {"epochs": 0}, "seed": self.plan.seeds[0]}
            )
            for name in own
            for at, change in enumerate(self.plan.joint)
        }
        found = run(jobs, "joint settings")
        best = {name: self.plan.joint[_best(found, name, "joint")] for name in own}
        return {name: best[self.plan.rows[name].joint_of or name] for name in rows}

    def _search_tuning(
        self, rows: Sequence[str], joint: Mapping[str, Changes], run: _Run
    ) -> dict[str, Changes]:
        settings = {
            name: [
                {"joint": joint[name], "tuning": change, **other}
                for other in self.plan.rows[name].tries
                for change in self.plan.tuning
            ]
            for name in rows
        }
        jobs = {
            (name, at): self._job(name, {**change, "seed": self.plan.seeds[0]})
            for name in rows
            for at, change in enumerate(settings[name])
        }
        found = run(jobs, "tuning settings")
        return {name: settings[name][_best(found, name, "pack")] for name in rows}

    def _job(self, name: str, settings: Changes) -> Job:
        row, base = self.plan.rows[name], self.base
        if row.teacher:
            if not base["distil"]:
                raise RunError(f"plan: row {name} is a teacher, and the base recipe distils none")
            base = base["distil"]["teacher"]
        elif row.plain:
            base = {**base, "data": base["data"]["of"]}
        recipe = parse(Recipe, merged(merged(base, row.change), settings), f"row {name}")
        prepared = prepare(recipe.data.name, recipe.data.options, self.data)
        if row.teacher:
            folder = whole_run(recipe, prepared, self.folder / "runs" / "teachers")
        else:
            digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
            folder = self.folder / "runs" / digest
        return Job(recipe, folder, prepared.path, self._unseen(recipe))

    def _unseen(self, recipe: Recipe) -> Path | None:
        if self.unseen is None:
            return None
        data = recipe.data.model_dump()
        data = {**data, "of": {**data["of"], **self.unseen}} if "of" in data else {**data, **self.unseen}
        choice = Choice.model_validate(data)
        return prepare(choice.name, choice.options, self.data).path

    def _report(
        self, chosen: Mapping[str, Changes], jobs: Mapping[Any, Job], found: Mapping[Any, dict[str, Any]]
    ) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for name, settings in chosen.items():
            runs = [metrics for (row, _), metrics in found.items() if row == name]
            folders = [job.folder for (row, _), job in jobs.items() if row == name]
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
                "settings": settings,
                "runs": [folder.relative_to(self.folder).as_posix() for folder in folders],
            }
        candidates = [name for name in rows if self.plan.rows[name].candidate] or list(rows)
        return {
            "plan": self.plan.model_dump(mode="json"),
            "seeds": list(self.plan.seeds),
            "domains": list(next(iter(found.values()))["domains"]),
            "budget_per_row": {"joint": len(self.plan.joint), "tuning": len(self.plan.tuning)},
            "tried_of_row": {name: len(self.plan.rows[name].tries) for name in chosen},
            "chosen_on_validation": max(candidates, key=lambda name: rows[name]["valid_macro_auc_mean"]),
            "rows": rows,
            **(self._paired(rows, jobs) if self.plan.against in rows else {}),
        }

    def _paired(self, rows: dict[str, Any], jobs: Mapping[Any, Job]) -> dict[str, Any]:
        """Slices of each row into its figures; and differences with intervals."""
        test, scores = self._scores(jobs)
        against = self.plan.against or ""
        differences: dict[str, Any] = {}
        for name, row in rows.items():
            slices = {
                where: {"auc_mean": float(np.mean(aucs)), "auc_std": deviation(aucs)}
                for where in test.slices
                if (aucs := [test.auc(logit, where) for logit in scores[name]])
            }
            row["slices"] = slices
            if name != against:
                differences[name] = {
                    where: asdict(test.interval(scores[name], scores[against], where))
                    for where in ("macro", "thin domains", "new items")
                    if where in test.slices
                }
        out: dict[str, Any] = {"differences_from": {against: differences}}
        if self.plan.distilled is not None and {*self.plan.distilled.model_dump().values()} <= rows.keys():
            out |= _kept(self.plan.distilled, test, scores)
        if self.unseen is not None:
            runs = [(name, job.folder, job.unseen) for (name, _), job in jobs.items()]
            out["unseen"] = unseen.figures(runs)
        return out

    def _scores(self, jobs: Mapping[Any, Job]) -> tuple[paired.Rows, dict[str, list[Floats]]]:
        """The test rows, and every row's logits of them, seed by seed.

        Raises:
            RunError: two rows of the table have other test rows.
        """
        prepared = Prepared.open(next(iter(jobs.values())).data)
        test = prepared.split("test").sort("row")
        scores: dict[str, list[Floats]] = {}
        for (name, _), job in jobs.items():
            found = pl.read_parquet(job.folder / "scores.parquet").sort("row")
            if not found["row"].equals(test["row"]):
                raise RunError(f"row {name} was tested on other rows than the first one")
            scores.setdefault(name, []).append(found["logit"].to_numpy())
        return paired.Rows.of(test, prepared.split("train"), prepared.domains, self.thin), scores


def _train(job: Job) -> dict[str, Any]:
    """In a process of its own."""
    prepared = Prepared.open(job.data)
    run = Run(job.folder, job.recipe, prepared)
    scored = job.unseen is None or (job.folder / unseen.FILE).exists()
    if run.metrics is None or not scored:
        with Progress(disable=True) as silent, alone(job.folder):
            model = Fit(job.recipe, prepared, run, silent)()
            if job.unseen is not None:
                judged = unseen.judge(model, Prepared.open(job.unseen), job.recipe, silent)
                files.write(job.folder / unseen.FILE, judged)
    metrics = run.metrics
    if metrics is None:
        raise RunError(f"{job.folder} did not complete")
    return metrics


def _over(base: Changes, source: Mapping[str, Any]) -> Changes:
    """A recipe whose data, and whose teacher's, wrap another source; data that wraps none is replaced."""
    data = {**base["data"], "of": dict(source)} if "of" in base["data"] else dict(source)
    out = {**base, "data": data}
    if base["distil"]:
        teacher = base["distil"]["teacher"]
        out["distil"] = {
            **base["distil"],
            "teacher": {**teacher, "data": {**teacher["data"], "of": dict(source)}},
        }
    return out


def _kept(rows: Distilled, test: paired.Rows, scores: Mapping[str, Sequence[Floats]]) -> dict[str, Any]:
    """What part of the teacher's gain the student keeps; null where the gain is under two standard errors."""
    gain = test.interval(scores[rows.teacher], scores[rows.without], "macro")
    own = test.interval(scores[rows.student], scores[rows.without], "macro")
    sure = gain.difference > 2 * gain.error
    return {
        "teacher_gain": asdict(gain),
        "student_gain": asdict(own),
        "kept_share": own.difference / gain.difference if sure else None,
    }


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
    out[f"{name}_std"] = deviation(listed)

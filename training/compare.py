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
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from service.contract import files
from service.contract.errors import RunError
from training import unseen
from training.checkpoint import Run
from training.data.prepare import Prepared, prepare
from training.distil import alone, whole_run
from training.fit import Fit
from training.model import build
from training.outcome import Job, Outcome, parquet
from training.plan import Changes, Plan, Subject
from training.recipe import Choice, Recipe, parse
from training.search import BOUNDED, Study, best

Floats = npt.NDArray[np.float64]
_FIGURES = ("auc", "gauc", "logloss", "ne", "ece")


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
        files.write(self.folder / "results.parquet", parquet(report))
        for part in [report[name] for name in report.get("subjects", ())] or [report]:
            for row in part["rows"].values():
                del row["of_seeds"]  # many, and all of them in that table
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
        self.tried: dict[str, dict[str, int]] = {}
        """Settings of each row, by stage."""
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
        tried = {name: self._settings_tried(name) for name in searching}
        outcome = Outcome(self.plan, self.folder, self.thin, self.unseen is not None, chosen, tried, jobs)
        return outcome.report(run(jobs, "every seed"))

    def _search_joint(self, rows: Sequence[str], run: _Run) -> dict[str, Changes]:
        own = dict.fromkeys(self.plan.rows[name].joint_of or name for name in rows)
        first = {
            name: [{"joint": change, "tuning": {"epochs": 0}} for change in self.plan.joint] for name in own
        }
        best = self._search("joint", first, run)
        return {name: best[self.plan.rows[name].joint_of or name]["joint"] for name in rows}

    def _search_tuning(
        self, rows: Sequence[str], joint: Mapping[str, Changes], run: _Run
    ) -> dict[str, Changes]:
        tuned = {name: self._tuned(name) for name in rows}
        first = {
            name: [
                {"joint": joint[name], "tuning": change, **other}
                for other in self.plan.rows[name].tries
                for change in self.plan.tuning[: None if tuned[name] else 1]
            ]
            for name in rows
        }
        return self._search("tuning", first, run, [name for name in rows if tuned[name]])

    def _search(
        self,
        stage: Literal["joint", "tuning"],
        first: Mapping[str, Sequence[Changes]],
        run: _Run,
        further: Iterable[str] | None = None,
    ) -> dict[str, Changes]:
        """Each row's best settings on validation.

        Args:
            stage: what is searched.
            first: what is tried first, by row.
            run: runs jobs, and gives their metrics.
            further: rows of which the plan's search then asks for more; all by default.
        """
        space, which = getattr(self.plan.search, stage), "joint" if stage == "joint" else "pack"
        rounds = 1 + (space.trials if space else 0)
        tried: dict[str, list[tuple[Changes, float]]] = {name: [] for name in first}
        asked: dict[str, Sequence[Changes]] = dict(first)
        studies: dict[str, Study] = {}
        if space:
            for name in first if further is None else further:
                known = {key: value for key, value in first[name][0][stage].items() if key not in BOUNDED}
                studies[name] = Study(space, self.plan.seeds[0], known)
        for at in range(rounds):
            jobs = {
                (name, order): self._job(name, {**setting, "seed": self.plan.seeds[0]})
                for name, settings in asked.items()
                for order, setting in enumerate(settings)
            }
            found = run(jobs, f"{stage} settings" + (f", {at + 1} of {rounds}" if rounds > 1 else ""))
            for name, order in jobs:
                setting = asked[name][order]
                score = found[name, order]["valid"]["macro"][which]["auc"]
                tried[name].append((setting, score))
                if name in studies:
                    studies[name].tell(setting[stage], score)
            asked = {name: [{**best(tried[name]), stage: study.ask()}] for name, study in studies.items()}
        self.tried[stage] = {name: len(settings) for name, settings in tried.items()}
        return {name: best(settings) for name, settings in tried.items()}

    def _settings_tried(self, name: str) -> dict[str, int]:
        """How many, by stage; those of the row that its joint stage is of are among them."""
        joint = self.plan.rows[name].joint_of or name
        of_stage = {"joint": joint, "tuning": name}
        return {
            stage: counts[of_stage[stage]]
            for stage, counts in self.tried.items()
            if of_stage[stage] in counts
        }

    def _tuned(self, name: str) -> bool:
        """Whether a row has a stage over each domain."""
        job = self._job(name, {})
        prepared = Prepared.open(job.data)
        paradigm = build(job.recipe, prepared.schema, prepared.domains).paradigm
        return any(each.rows == "each domain" for each in paradigm.stages())

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

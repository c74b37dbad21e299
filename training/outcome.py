"""`Outcome`: what the rows of a comparison reached on one data set, as a report and as a table of figures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from service.contract.errors import RunError
from training import paired, unseen
from training.data.prepare import Prepared
from training.paired import deviation
from training.plan import Changes, Distilled, Plan
from training.recipe import Recipe

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


@dataclass(frozen=True)
class Outcome:
    """Runs of one data set, and what they are judged by."""

    plan: Plan
    folder: Path
    """Of the runs."""
    thin: Sequence[str]
    """Domains with few training rows."""
    newcomers: bool
    """Whether there are rows of domains that no model has seen."""
    chosen: Mapping[str, Changes]
    """Settings by row."""
    tried: Mapping[str, Mapping[str, int]]
    """How many settings of each row were tried, by stage."""
    jobs: Mapping[tuple[str, int], Job]
    """The runs, by row and seed."""

    def report(self, found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
        """The comparison on one data set, as `report.json` has it.

        Args:
            found: the metrics of each row's and seed's run.
        """
        chosen, jobs = self.chosen, self.jobs
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
                "seconds": float(np.mean([seconds(folder) for folder in folders])),
                "of_seeds": [
                    {
                        domain: {figure: float(run["domains"][domain]["pack"][figure]) for figure in _FIGURES}
                        for domain in run["domains"]
                    }
                    | {"macro": {figure: float(run["macro"]["pack"][figure]) for figure in _FIGURES}}
                    for run in runs
                ],
                "runs": [folder.relative_to(self.folder).as_posix() for folder in folders],
            }
        candidates = [name for name in rows if self.plan.rows[name].candidate] or list(rows)
        return {
            "plan": self.plan.model_dump(mode="json"),
            "seeds": list(self.plan.seeds),
            "domains": list(next(iter(found.values()))["domains"]),
            "tried_of_row": {name: dict(self.tried.get(name, {})) for name in chosen},
            "chosen_on_validation": max(candidates, key=lambda name: rows[name]["valid_macro_auc_mean"]),
            "rows": rows,
            **(self._differences(rows) if self.plan.against in rows else {}),
            **self._pairs(rows),
        }

    def _differences(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Slices of each row into its figures; and differences with intervals."""
        test, scores = self._scores()
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
        of_seeds = {name: [seed["macro"]["auc"] for seed in row["of_seeds"]] for name, row in rows.items()}
        alike = [name for name in differences if len(of_seeds[name]) == len(of_seeds[against])]
        p = paired.holm({name: paired.over_seeds(of_seeds[name], of_seeds[against]) for name in alike})
        for name in alike:
            differences[name]["p_over_seeds"] = p[name]
        out: dict[str, Any] = {"differences_from": {against: differences}}
        if self.plan.distilled is not None and {*self.plan.distilled.model_dump().values()} <= rows.keys():
            out |= _kept(self.plan.distilled, test, scores)
        if self.newcomers:
            runs = [(name, job.folder, job.unseen) for (name, _), job in self.jobs.items()]
            out["unseen"] = unseen.figures(runs)
        return out

    def _pairs(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Differences of macro AUC over seeds, by question."""
        macro = {name: [seed["macro"]["auc"] for seed in row["of_seeds"]] for name, row in rows.items()}
        found = {}
        for question, asked in self.plan.pairs.items():
            there = [pair for pair in asked if {*pair} <= rows.keys()]
            p = paired.holm({pair: paired.over_seeds(macro[pair[0]], macro[pair[1]]) for pair in there})
            found[question] = [
                {
                    "row": one,
                    "less": other,
                    "difference": float(np.mean(macro[one]) - np.mean(macro[other])),
                    "p": p[one, other],
                }
                for one, other in there
            ]
        found = {question: listed for question, listed in found.items() if listed}
        return {"pairs": found} if found else {}

    def _scores(self) -> tuple[paired.Rows, dict[str, list[Floats]]]:
        """The test rows, and every row's logits of them, seed by seed.

        Raises:
            RunError: two rows of the table have other test rows.
        """
        prepared = Prepared.open(next(iter(self.jobs.values())).data)
        test = prepared.split("test").sort("row")
        scores: dict[str, list[Floats]] = {}
        for (name, _), job in self.jobs.items():
            found = pl.read_parquet(job.folder / "scores.parquet").sort("row")
            if not found["row"].equals(test["row"]):
                raise RunError(f"row {name} was tested on other rows than the first one")
            scores.setdefault(name, []).append(found["logit"].to_numpy())
        return paired.Rows.of(test, prepared.split("train"), prepared.domains, self.thin), scores


def seconds(folder: Path) -> float:
    """Of training, evaluation of each epoch included."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return float(sum(json.loads(line)["seconds"] for line in lines))


def parquet(report: Mapping[str, Any]) -> bytes:
    """Every figure of every row, seed and domain, a row each."""
    parts = {name: report[name] for name in report.get("subjects", ())} or {"": report}
    records = [
        {"data": data, "model": model, "seed": seed, "domain": domain, **figures}
        for data, part in parts.items()
        for model, row in part["rows"].items()
        for seed, of_seed in zip(
            part["plan"]["rows"][model]["seeds"] or part["seeds"], row["of_seeds"], strict=True
        )
        for domain, figures in of_seed.items()
    ]
    out = io.BytesIO()
    pl.DataFrame(records).write_parquet(out)
    return out.getvalue()


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

"""`Budgets`: what a load test must keep, and what became of it: a table, a figure, JSON and an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Constraint
from rich.console import Console
from rich.table import Table

from service.contract import files
from service.contract.errors import MdctrError

ALL = "all"
_PERCENTILES = {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0, "p999_ms": 99.9}
_SHED = (429, 503, 504)
_GOOD = (200, 202, 204)
Milliseconds = Annotated[float, Constraint(gt=0)]
Share = Annotated[float, Constraint(ge=0, le=1)]


class BudgetError(MdctrError):
    """A file of budgets, or of observations, cannot be read."""


class Budget(BaseModel):
    """Of one domain, or of all; what is left out is not judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p50_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    p999_ms: Milliseconds | None = None
    errors: Share | None = None
    shed: Share | None = None


class Budgets(BaseModel):
    """A whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    all: Budget
    """Of all requests together, and of each domain that is not named."""
    late_starts: Share = 0.01
    """Share of the requests that may start late, before the test itself has failed."""
    domains: Mapping[str, Budget] = {}

    @classmethod
    def load(cls, path: Path) -> Budgets:
        """Read a YAML file.

        Raises:
            BudgetError: it is not what it should be.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise BudgetError(f"{path}: {error}") from error


@dataclass
class Observed:
    """What a load test saw; it can be filled as requests end."""

    latency_ms: dict[str, list[float]] = field(default_factory=dict)
    """Of good answers, by domain."""
    requests: dict[str, int] = field(default_factory=dict)
    shed: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    late_starts: int = 0

    def add(self, domain: str, status: int, milliseconds: float) -> None:
        """One request; status 0 is a lost connection."""
        self.requests[domain] = self.requests.get(domain, 0) + 1
        if status in _GOOD:
            self.latency_ms.setdefault(domain, []).append(milliseconds)
        else:
            kind = self.shed if status in _SHED else self.errors
            kind[domain] = kind.get(domain, 0) + 1

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        files.write(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Observed:
        """Read what `save` wrote.

        Raises:
            BudgetError: it is something else.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise BudgetError(f"{path} is no record of a load test: {error}") from error


@dataclass(frozen=True)
class Verdict:
    """One measure against its budget."""

    domain: str
    measure: str
    found: float
    budget: float

    @property
    def kept(self) -> bool:
        """Whether it is within; what was not measured is not."""
        return self.found <= self.budget


def judge(budgets: Budgets, observed: Observed) -> list[Verdict]:
    """Every measure that has a budget: of all, then of each domain that was asked or has one of its own."""
    found = [*_of(ALL, budgets.all, observed)]
    for domain in sorted({*observed.requests, *budgets.domains}):
        found += _of(domain, budgets.domains.get(domain, budgets.all), observed)
    total = sum(observed.requests.values())
    late = observed.late_starts / total if total else np.inf
    return [*found, Verdict(ALL, "late_starts", float(late), budgets.late_starts)]


def exit_code(verdicts: list[Verdict]) -> int:
    """0 if all were kept, else 1."""
    return 0 if all(verdict.kept for verdict in verdicts) else 1


def report(verdicts: list[Verdict], observed: Observed) -> dict[str, Any]:
    """For a file."""
    return {
        "kept": exit_code(verdicts) == 0,
        "requests": sum(observed.requests.values()),
        "verdicts": [{**asdict(verdict), "kept": verdict.kept} for verdict in verdicts],
    }


def show(verdicts: list[Verdict], console: Console) -> None:
    """A row a domain, a column a measure; what broke its budget has the budget beside it."""
    measures = [*dict.fromkeys(verdict.measure for verdict in verdicts)]
    table = Table("domain", *measures)
    for domain in dict.fromkeys(verdict.domain for verdict in verdicts):
        mine = {verdict.measure: verdict for verdict in verdicts if verdict.domain == domain}
        table.add_row(domain, *(_cell(mine.get(measure)) for measure in measures))
    console.print(table)


def figure(budgets: Budgets, observed: Observed, path: Path) -> bool:
    """Draw the latencies' distribution with the budgets in it; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - the extra `report` has it
    except ImportError:
        return False
    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawing.subplots()
    for domain, latency in (*sorted(observed.latency_ms.items()), (ALL, _together(observed))):
        if latency:
            above = 1 - np.arange(len(latency)) / len(latency)
            whole = domain == ALL
            axes.step(
                np.sort(latency),
                above,
                color="black" if whole else None,
                linewidth=2 if whole else 0.8,
                label=domain if whole or len(observed.latency_ms) <= 8 else None,
            )
    for measure, percent in _PERCENTILES.items():
        if (limit := getattr(budgets.all, measure)) is not None:
            axes.plot(
                [limit], [1 - percent / 100], marker="v", color="#d55e00", markersize=9, linestyle="none"
            )
            axes.annotate(
                measure.removesuffix("_ms"), (limit, 1 - percent / 100), (6, 4), textcoords="offset points"
            )
    axes.set(xscale="log", yscale="log", xlabel="latency from the moment due, ms", ylabel="share slower")
    axes.set_title("the curve keeps its budget where it is left of and below a triangle", fontsize=9)
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=150)
    return True


def conclude(budgets: Budgets, observed: Observed, folder: Path, console: Console) -> int:
    """Judge, print the table, and leave `observed.json`, `budgets.json` and `latency.png`; the exit code."""
    verdicts = judge(budgets, observed)
    observed.save(folder / "observed.json")
    files.write(folder / "budgets.json", json.dumps(report(verdicts, observed), indent=1))
    if not figure(budgets, observed, folder / "latency.png"):
        console.print("no figure: matplotlib is not installed", style="dim")
    show(verdicts, console)
    return exit_code(verdicts)


def _of(domain: str, budget: Budget, observed: Observed) -> Iterator[Verdict]:
    whole = domain == ALL
    latency = _together(observed) if whole else observed.latency_ms.get(domain, [])
    total = sum(observed.requests.values()) if whole else observed.requests.get(domain, 0)
    for measure, percent in _PERCENTILES.items():
        if (limit := getattr(budget, measure)) is not None:
            found = float(np.percentile(latency, percent)) if latency else np.inf
            yield Verdict(domain, measure, found, limit)
    for measure, counts in (("errors", observed.errors), ("shed", observed.shed)):
        if (limit := getattr(budget, measure)) is not None:
            count = sum(counts.values()) if whole else counts.get(domain, 0)
            yield Verdict(domain, measure, count / total if total else np.inf, limit)


def _together(observed: Observed) -> list[float]:
    return [each for latency in observed.latency_ms.values() for each in latency]


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    time = verdict.measure.endswith("_ms")
    found, limit = (f"{x:.2f}" if time else f"{x:.2%}" for x in (verdict.found, verdict.budget))
    return found if verdict.kept else f"[bold red]{found} > {limit}[/]"

"""`Plan`: which models to compare, on which data, with what budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from service.contract.errors import RunError
from training.recipe import parse
from training.search import Search

Changes = dict[str, Any]


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
    tries: Annotated[tuple[Changes, ...], Field(min_length=1)] = ({},)
    """What else is tried of it, each with every tuning setting: how much a student listens to its teacher."""
    teacher: bool = False
    """The row is the teacher that the base recipe distils, and `change` is one of the teacher's recipe."""
    plain: bool = False
    """The row reads the data that the base recipe's data wraps: ids without what a language model made."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """In the place of the plan's."""


class Curve(BaseModel):
    """A figure: macro AUC of some rows over a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    """Of the x axis, with its unit."""
    points: dict[str, float]
    """Row -> x."""


class Subject(BaseModel):
    """A data set that a plan is run on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: dict[str, Any]
    """What the base recipe's data, and its teacher's, wrap; or the data itself, where that wraps nothing."""
    thin: tuple[str, ...] = ()
    """Domains with few training rows, which are also judged by themselves."""
    change: Changes = {}
    """What else differs from the base recipe."""
    unseen: Changes | None = None
    """Options of the source that give rows of domains which no model has seen, for the general pack."""
    rows: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which of the plan's; all of them where nothing is said."""


class Searches(BaseModel):
    """What is tried of a stage beside the plan's own settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    joint: Search | None = None
    tuning: Search | None = None


class Distilled(BaseModel):
    """Which rows say what a student keeps of its teacher's gain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    student: str
    without: str
    """The student without its teacher."""


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
    search: Searches = Searches()
    """Further settings of each row, near those that did well."""
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    subjects: dict[str, Subject] = {}
    against: str | None = None
    """The row that others' differences are reported from."""
    pairs: dict[str, tuple[tuple[str, str], ...]] = {}
    """Rows whose differences are reported, the first one's less the second's, by what is asked of them. The
    p-values under one question are corrected for their number."""
    distilled: Distilled | None = None
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
        if strange := [name for name, row in plan.rows.items() if "data" in row.change and not row.teacher]:
            raise RunError(f"plan: rows on other data cannot be compared: {', '.join(strange)}")
        named = {row.joint_of for row in plan.rows.values()} - {None}
        named |= {row for curve in plan.curves.values() for row in curve.points}
        named |= {row for bar in plan.bars.values() for row in bar} | set(plan.sizes)
        named |= {row for asked in plan.pairs.values() for pair in asked for row in pair}
        named |= {row for subject in plan.subjects.values() for row in subject.rows or ()}
        named |= {plan.against} - {None} | set(plan.distilled.model_dump().values() if plan.distilled else ())
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

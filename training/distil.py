"""Distillation: what a teacher says of rows that it has not been trained on, and how a student learns it.

A teacher fitted to a row repeats that row's label, which teaches nothing. So training rows are cut into
folds; each fold's targets come from a teacher trained on the others. Representations of different teachers
have nothing in common, so each fold's are mapped, by ridge regression over the validation rows, to the first
principal components of the representations that one teacher trained on all rows has.

    <root>/<teacher>-<print>/                 the run of the teacher of all rows, as good as any to export
             folds-<n>-<r>/fold-0/ ...        those of the folds
                           targets.parquet    `row` (Int64), `fold` (Int8), `logit` (float16) and
                                              `representation` (r float16) of every training row
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch
from pyarrow import parquet
from rich.progress import Progress
from torch import Tensor, nn

from service.contract import files
from service.contract.errors import RunError
from training.backbones._protocol import Backbone, Interaction
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, Split, prepare
from training.grades import Grades
from training.losses import apart, click
from training.paradigms._protocol import Paradigm
from training.recipe import Distil, Recipe, parse

if TYPE_CHECKING:
    from training.fit import Fit

Floats = npt.NDArray[np.float32]

_RIDGE = 1e-3
"""Of the mean squared representation, in the regression between two teachers."""
_BATCH = 512


class Teacher(Protocol):
    """A paradigm that says more of a row than its logit."""

    def read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Logits (B,) and representations (B, any width)."""
        ...


class Student(nn.Module):
    """A paradigm while it is taught: its backbone's hidden units are projected to the teacher's space.

    The projection is gone when the student is saved.
    """

    def __init__(self, paradigm: Paradigm, distil: Distil, grades: Grades | None = None) -> None:
        super().__init__()
        self.paradigm, self.distil, self.grades = paradigm, distil, grades
        self.projection: nn.Linear | None = None
        self._hidden: Tensor | None = None
        if distil.representation:
            backbones = [module for module in paradigm.modules() if isinstance(module, Backbone)]
            if len(backbones) != 1:
                raise RunError(
                    f"a representation is distilled into one backbone, and this paradigm has "
                    f"{len(backbones)}; set distil.representation to 0"
                )
            self.projection = nn.Linear(backbones[0].width, distil.size)
            # The backbone outlives the student, and so does the hook, but for what it keeps.
            backbones[0].register_forward_hook(self._keep)

    @property
    def own(self) -> set[str]:
        """Names of the parameters that are not the paradigm's."""
        return {name for name, _ in self.named_parameters() if not name.startswith("paradigm.")}

    def loss(self, rows: Rows, part: Rows) -> Tensor:
        """The mean loss of rows, with that of those under the general domain added.

        Args:
            rows: B, with targets.
            part: the first of them under the general domain, as many as its weight wants.
        """
        both = rows.joined(part) if len(part) else rows
        total = click(self.paradigm.both(rows, part), both, self.distil, self.grades).sum() / len(rows)
        hidden, self._hidden = self._hidden, None
        if self.projection is not None and hidden is not None and rows.target is not None:
            far = apart(self.projection(hidden[: len(rows)]), rows.target[:, 1:])
            total = total + self.distil.representation * far.mean()
        return total

    def _keep(self, module: nn.Module, given: object, made: Interaction) -> None:
        del module, given
        self._hidden = made.hidden


@dataclass(frozen=True)
class Targets:
    """A complete folder of a teacher's targets."""

    folder: Path

    @classmethod
    def make(cls, distil: Distil, root: Path, data: Path, progress: Progress) -> Targets:
        """Train the teachers that are not trained yet, and read what they say.

        Args:
            distil: the teacher and the number of folds.
            root: the folder of all teachers.
            data: the folder of prepared data.
            progress: shows it.

        Raises:
            RunError: the recipe is wrong, or the paradigm is no teacher.
        """
        recipe = parse(Recipe, {**distil.teacher, "seed": distil.seed}, "distil.teacher")
        if recipe.align is not None:
            raise RunError("distil.teacher: a teacher is not aligned: its folds' rows have no texts")
        prepared = prepare(recipe.data.name, recipe.data.options, data)
        whole = whole_run(recipe, prepared, root)
        folder = whole / f"folds-{distil.folds}-{distil.size}"
        with alone(whole):
            folder.mkdir(exist_ok=True)
            if not (folder / "targets.parquet").exists():
                _Teaching(recipe, prepared, progress).write(whole, folder, distil)
        return cls(folder)

    def of(self, frame: pl.DataFrame) -> Tensor:
        """(n, 1 + r) of a student's training rows.

        Raises:
            RunError: the teacher has read other rows.
        """
        table = parquet.read_table(self.folder / "targets.parquet")
        order = np.argsort(table["row"].to_numpy())
        known, rows = table["row"].to_numpy()[order], frame["row"].to_numpy()
        at = np.searchsorted(known, rows).clip(max=len(known) - 1)
        if not np.array_equal(known[at], rows):
            raise RunError(f"{self.folder} has no target for some of the student's training rows")
        logit = table["logit"].to_numpy()[order][at]
        flat = table["representation"].combine_chunks().flatten().to_numpy()
        representation = flat.reshape(len(known), -1)[order][at]
        return torch.from_numpy(np.column_stack([logit, representation]).astype(np.float32))


def whole_run(recipe: Recipe, prepared: Prepared, root: Path) -> Path:
    """Where the run of a teacher of all rows is, whoever asks for it."""
    identity = json.dumps([recipe.model_dump(mode="json"), prepared.path.name])
    return root / f"{recipe.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


class _Teaching:
    """Makes a folder of targets."""

    def __init__(self, recipe: Recipe, prepared: Prepared, progress: Progress) -> None:
        self.recipe, self.prepared, self.progress = recipe, prepared, progress
        self.row = prepared.split("train")["row"].to_numpy()
        self.train, self.valid = self._rows("train"), self._rows("valid")

    def write(self, whole: Path, folder: Path, distil: Distil) -> None:
        """Train and read.

        Args:
            whole: the run of the teacher of all rows.
            folder: of the folds.
            distil: how many of them.
        """
        run = Run(whole, self.recipe, self.prepared)
        fit = self._fit(run)
        _able(fit.model.paradigm)  # before it is trained
        said = _read(fit().paradigm, self.valid)
        space = _Components.of(said.representation, distil.size)
        fold = self._fold(distil)
        logit = np.empty(len(self.row), np.float32)
        representation = np.empty((len(self.row), distil.size), np.float32)
        for at in range(distil.folds):
            held = np.flatnonzero(fold == at)
            teacher = self.without(folder, distil, at)
            on_valid, on_held = _read(teacher, self.valid), _read(teacher, self.train[torch.from_numpy(held)])
            logit[held] = on_held.logit
            representation[held] = space.mapped(on_valid.representation, on_held.representation)
        table = {
            "row": pa.array(self.row),
            "fold": pa.array(fold.astype(np.int8)),
            "logit": pa.array(logit.astype(np.float16)),
            "representation": pa.FixedSizeListArray.from_arrays(
                pa.array(representation.astype(np.float16).ravel()), distil.size
            ),
        }
        _save(folder / "targets.parquet", table)

    def without(self, folder: Path, distil: Distil, at: int) -> Paradigm:
        """The teacher that has not seen a fold."""
        run = Run(folder / f"fold-{at}", self.recipe, self.prepared)
        others = self.train[torch.from_numpy(self._fold(distil) != at)]
        return self._fit(run, others).train().paradigm

    def _fold(self, distil: Distil) -> npt.NDArray[np.int64]:
        """(n,) which fold each training row is in."""
        return np.random.default_rng(self.recipe.seed).permutation(len(self.row)) % distil.folds

    def _fit(self, run: Run, train: Rows | None = None) -> Fit:
        from training.fit import Fit  # noqa: PLC0415 - a fit may need targets, which need fits

        return Fit(self.recipe, self.prepared, run, self.progress, train)

    def _rows(self, split: Split) -> Rows:
        return Rows.encode(self.prepared.split(split), self.prepared.schema, self.prepared.domains)


@dataclass(frozen=True)
class _Said:
    logit: Floats
    """(n,)"""
    representation: Floats
    """(n, width)"""


@dataclass(frozen=True)
class _Components:
    """The first principal components of n validation rows' representations, by one teacher."""

    scores: npt.NDArray[np.float64]
    """(n, r), of mean 0; together the columns have variance 1."""

    @classmethod
    def of(cls, representation: Floats, size: int) -> _Components:
        centred = representation.astype(np.float64) - representation.mean(0)
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        scores = left[:, :size] * singular[:size]
        if scores.shape[1] < size:
            raise RunError(f"a representation of {scores.shape[1]} numbers cannot be projected to {size}")
        return cls(scores / np.sqrt(np.square(scores).sum(1).mean()))

    def mapped(self, valid: Floats, held: Floats) -> Floats:
        """Another teacher's representations in this space, (m, width) to (m, r).

        Args:
            valid: (n, width), what it makes of the validation rows.
            held: (m, width), what it makes of the rows wanted.
        """
        mean = valid.mean(0).astype(np.float64)
        x = valid - mean
        ridge = _RIDGE * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
        slope = np.linalg.solve(x.T @ x + ridge, x.T @ self.scores)
        found: Floats = ((held - mean) @ slope).astype(np.float32)
        return found


@torch.inference_mode()
def _read(teacher: Paradigm, rows: Rows) -> _Said:
    able = _able(teacher)
    teacher.eval()
    at = next(teacher.parameters()).device
    order = teacher.alike(rows)
    order = torch.arange(len(rows)) if order is None else order
    logits, representations = [], []
    for batch in rows.ordered(order).batches(_BATCH):
        logit, representation = able.read(batch.to(at))
        logits.append(logit.float().cpu())
        representations.append(representation.float().cpu())
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return _Said(torch.cat(logits)[back].numpy(), torch.cat(representations)[back].numpy())


def _able(paradigm: Paradigm) -> Teacher:
    if not hasattr(paradigm, "read"):
        raise RunError("the teacher's paradigm has no representations to teach")
    return cast("Teacher", paradigm)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: students wait for a teacher that they share."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _save(path: Path, columns: dict[str, pa.Array]) -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    files.write(path, sink.getvalue().to_pybytes())

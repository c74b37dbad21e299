"""`Fit`: the stages of a recipe, in order, in a run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.tensorboard import SummaryWriter

from service.contract.errors import RunError
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, Split
from training.data.stream import Stream
from training.distil import Student, Targets
from training.evaluation import Labelled, calibrate, evaluate
from training.grades import Grades
from training.loop import Journal, Loop, Pass
from training.losses import click
from training.metrics import auc, logloss
from training.model import Model, build, joint_logits
from training.paradigms._protocol import Paradigm
from training.ranks import ALONE, Ranks
from training.recipe import Recipe
from training.stages import ALIGN, Stage
from training.start import Start
from training.tuning import tune

_AT_WORK = 20
"""How many times longer a stage works than it saves, at least."""
SAVE_EVERY = 5.0
"""Seconds between two savings of a stage's state: what a kill can cost, and a hundred small domains should
not wait for the disk after each epoch."""


class _RunJournal(Journal):
    """Writes into a run's folder, and to TensorBoard where this rank does."""

    def __init__(self, run: Run, board: SummaryWriter | None) -> None:
        self.run, self.board = run, board
        self.log = run.logged()
        self.next = 0.0

    def resume(self, key: str) -> Mapping[str, Any] | None:
        """From the run's saved state."""
        return self.run.load_state(key)

    def begin(self, key: str, epoch: int) -> None:
        """What a killed run logged after it last saved is trained, and logged, again."""
        self.log = [line for line in self.log if line["stage"] != key or line["epoch"] <= epoch]
        self.next = time.monotonic() + SAVE_EVERY

    def note(self, line: Mapping[str, Any]) -> None:
        """To the log and to TensorBoard."""
        self.log.append(dict(line))
        if self.board is None:
            return
        for name in ("loss", "valid_auc"):
            self.board.add_scalar(f"{line['stage']}/{name}", line[name], line["epoch"])

    def due(self) -> bool:
        """Every few seconds; less often where saving takes long."""
        return time.monotonic() >= self.next

    def save(self, state: Mapping[str, Any]) -> None:
        """The log first, so that it is never behind the state."""
        began = time.monotonic()
        self.run.log(self.log)
        self.run.save_state(state)
        ended = time.monotonic()
        self.next = ended + max(SAVE_EVERY, _AT_WORK * (ended - began))

    def end(self) -> None:
        """The log is on disk."""
        self.run.log(self.log)

    def gather(self) -> None:
        """Take over what other ranks logged."""
        known = {(line["stage"], line["epoch"]) for line in self.log}
        for line in self.run.logged_by_others():
            if (line["stage"], line["epoch"]) not in known:
                self.note(line)
        self.end()
        self.run.forget_others()


class Fit:
    """Runs the stages of a recipe in its folder, from wherever an earlier run was killed.

    What a stage does follows from the seed, its name and the epoch alone, so a run that was killed and
    resumed ends with the same weights, bit by bit, as one that was not.

    Several ranks train the stages over all domains together, and tune a part of the domains each. All have
    the same model afterwards. Aligning and evaluating are the first one's alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        run: Run,
        progress: Progress,
        train: Rows | Stream | None = None,
        *,
        ranks: Ranks = ALONE,
        start: Start | None = None,
    ) -> None:
        torch.set_num_threads(recipe.threads)
        self.recipe, self.prepared, self.run, self.progress = recipe, prepared, run, progress
        self.ranks, self.start = ranks, start
        if unknown := recipe.tuning.lr_of.keys() - set(prepared.domains):
            raise RunError(f"tuning.lr_of names domains that do not exist: {', '.join(sorted(unknown))}")
        self.model = build(recipe, prepared.schema, prepared.domains)
        if start is not None:
            start.begin(self.model)
        self.device = device_of(recipe)
        self.model.paradigm.to(self.device)
        if sum(stage.rows == "each domain" for stage in self.model.paradigm.stages()) > 1:
            raise RunError(f"paradigm {recipe.paradigm.name} has more than one stage over each domain")
        if recipe.align is not None and train is not None:
            raise RunError("a teacher is not aligned: its folds' rows have no texts")
        jointly = any(stage.rows == "all domains" for stage in self.model.paradigm.stages())
        if recipe.distil is not None and recipe.distil.representation and not jointly:
            raise RunError(
                f"paradigm {recipe.paradigm.name} has no stage over all domains, which is where a "
                "representation is distilled; set distil.representation to 0"
            )
        self.given, self.valid = train, self._rows("valid")
        precision = getattr(torch, recipe.precision)
        self.loop = Loop(recipe.seed, progress, precision=precision, ranks=ranks)
        self.alone = self.loop if ranks.size == 1 else Loop(recipe.seed, progress, precision=precision)

    @cached_property
    def rows(self) -> Rows | Stream:
        """Rows to train on, with a teacher's targets where the recipe has one.

        Raises:
            RunError: they come from the disk, and the recipe wants what only rows in memory have.
        """
        if self.given is not None:
            return self.given
        if self.prepared.blocks is not None:
            self._can_stream()
            return Stream.open(self.prepared.blocks)
        rows = self._rows("train")
        if self.recipe.distil is None:
            return rows
        teachers, data = self.run.folder.parent / "teachers", self.prepared.path.parent
        distil = self.recipe.distil
        targets = self.ranks.first(lambda: Targets.make(distil, teachers, data, self.progress))
        return replace(rows, target=targets.of(self.prepared.split("train")))

    def _can_stream(self) -> None:
        wants = [name for name in ("align", "distil", "grades") if getattr(self.recipe, name) is not None]
        if type(self.model.paradigm).batches is not Paradigm.batches:
            wants.append(f"paradigm.{self.recipe.paradigm.name}")
        if wants:
            raise RunError(
                f"source {self.prepared.about.source} gives its rows in parts, and the recipe has what wants "
                f"all of them in memory: {', '.join(wants)}"
            )

    @property
    def _in_memory(self) -> Rows:
        if isinstance(self.rows, Stream):
            raise RunError("the recipe wants all training rows in memory, and they are streamed")
        return self.rows

    @cached_property
    def grades(self) -> Grades | None:
        """How the training rows' grades teach, where the recipe has them do so."""
        if self.recipe.grades is None:
            return None
        rows = self._in_memory.to(self.device)
        return Grades.of(rows, len(self.model.domains), self.recipe.grades.weight)

    def __call__(self) -> Model:
        """Train what is not trained yet, evaluate, and return the model."""
        if self.run.metrics is None:
            self.train()
            if self.ranks.leads:
                self._finish()
            self.ranks.wait()
        self.run.restore_complete(self.model)
        return self.model

    def train(self) -> Model:
        """Train what is not trained yet."""
        if self.run.metrics is None:
            stages = self.model.paradigm.stages()
            joint = [stage.name for stage in stages if stage.rows == "all domains"]
            if self.recipe.align is not None:
                joint.insert(0, ALIGN)
            done = self.run.stage
            self.run.restore(self.model)
            self.ranks.wait()  # nobody writes before all have read
            with self._board() as board:
                journal = self.alone.journal = _RunJournal(self.run, board)
                self.loop.journal = journal if self.ranks.leads else Journal()
                if self.recipe.align is not None and done is None:
                    self._align()
                for stage in stages:
                    if stage.rows == "each domain":
                        self._each_domain(stage)
                    elif done is None or joint.index(stage.name) > joint.index(done):
                        self._all_domains(stage)
                self.ranks.wait()
                if self.ranks.size > 1 and self.ranks.leads:
                    journal.gather()
        # What is evaluated is what was saved, and so what will be exported.
        self.run.restore(self.model)
        return self.model

    def _board(self) -> SummaryWriter | nullcontext[None]:
        folder = self.run.folder / "tensorboard"
        return SummaryWriter(str(folder)) if self.ranks.leads else nullcontext()

    def _finish(self) -> None:
        """Calibrate, evaluate, and say that the run is complete."""
        self.model.calibration = calibrate(self.model, self.valid)
        self.run.save_calibration(self.model.calibration)
        splits: tuple[Split, ...] = ("test", "valid")
        test, valid = (
            evaluate(self.model, Labelled.of(self.prepared, split), self.valid) for split in splits
        )
        sizes = {
            "parameters": self.model.parameters(),
            "parameters_of_domain": self.model.parameters_of_domain(),
            "changed_of_domain": self.model.changed_of_domain(),
        }
        self.run.save_scores(self.prepared.split("test")["row"], test.logit, test.general)
        self.run.finish({**test.report, "valid": valid.report, **sizes})

    def _rows(self, split: Split) -> Rows:
        return Rows.encode(self.prepared.split(split), self.prepared.schema, self.prepared.domains)

    def _align(self) -> None:
        from training.align import aligning  # noqa: PLC0415 - only this stage needs a library of language models

        rows = {"train": self._in_memory, "valid": self.valid}
        if self.ranks.leads:
            torch.manual_seed(self.recipe.seed)
            paradigm = self.model.paradigm
            self.alone(aligning(self.recipe, self.prepared, paradigm, **rows, device=self.device))
            self.run.save_weights(ALIGN, paradigm.state_dict())
        self.ranks.wait()
        if not self.ranks.leads:
            self.run.restore(self.model)

    def _all_domains(self, stage: Stage) -> None:
        paradigm, general, distil = self.model.paradigm, len(self.model.domains), self.recipe.distil
        torch.manual_seed(self.recipe.seed)
        grades = self.grades
        student = None if distil is None else Student(paradigm, distil, grades)

        def loss(rows: Rows) -> Tensor:
            # Rows are shuffled, so the first tenth, repeated under the general domain, makes an unbiased
            # estimate of a loss that weighs all rows' general logits by a tenth: at a tenth of its cost.
            part = rows[: round(self.recipe.general_share * len(rows))].under(general)
            if student is not None:
                total = student.loss(rows, part)
            elif grades is not None:
                both = rows.joined(part) if len(part) else rows
                total = click(paradigm.both(rows, part), both, None, grades).sum() / len(rows)
            else:
                label = torch.cat([rows.label, part.label])
                logits = paradigm.both(rows, part)
                total = binary_cross_entropy_with_logits(logits, label, reduction="sum") / len(rows)
            extra = paradigm.extra(rows)
            return total if extra is None else total + extra

        def score() -> float:
            found = self.ranks.spread(valid, partial(joint_logits, paradigm)).numpy()
            label, domain = self.valid.label.numpy(), self.valid.domain.numpy()
            aucs = np.array([auc(found[domain == at], label[domain == at]) for at in range(general)])
            defined = aucs[~np.isnan(aucs)]
            return float(defined.mean()) if len(defined) else -logloss(found, label)

        train, valid = self.rows.to(self.device), self.valid.to(self.device)
        module: nn.Module = paradigm
        trains = stage.trains
        if student is not None:
            module = student.to(self.device)
            trains = frozenset({f"paradigm.{name}" for name in trains} | student.own)
        self.loop(Pass(stage.name, module, trains, self.recipe.joint, train, loss, score, paradigm.batches))
        if self.ranks.leads:
            self.run.save_weights(stage.name, paradigm.state_dict())

    def _each_domain(self, stage: Stage) -> None:
        for at in self.ranks.split(self.rows.counts(len(self.model.domains))):
            domain = self.model.domains[at]
            if domain not in self.model.tuned:
                self._tune(stage, domain, self.rows.of(at), self.valid.of(at))

    def _tune(self, stage: Stage, domain: str, train: Rows | Stream, valid: Rows) -> None:
        """Train a domain's pack on its rows, from the pack it has; nothing shared moves."""
        servable = self.model.paradigm.servable()
        pack = self.model.pack(domain)
        if self.start is not None:
            pack = self.start.tuned(domain, pack, stage.trains)
        servable.load_state_dict(pack, strict=False)
        tune(
            servable,
            stage.trains,
            self.recipe.tuning,
            domain=domain,
            train=train,
            valid=valid,
            loop=self.alone,
            stage=stage.name,
            distil=self.recipe.distil,
            grades=self.grades,
            most=self.model.paradigm.most_rows,
        )
        tensors = servable.state_dict()
        owned = sorted(self.model.paradigm.owned)
        self.model.tuned[domain] = {name: tensors[name].clone() for name in owned}
        self.run.save_domain(domain, self.model.tuned[domain])


def device_of(recipe: Recipe) -> torch.device:
    """Where a recipe's model is trained.

    Raises:
        RunError: it wants a GPU, and there is none.
    """
    found = torch.cuda.is_available()
    if recipe.device == "cuda" and not found:
        raise RunError("the recipe's device is cuda, and torch finds none")
    # cuDNN plans attention anew for every length of text: measured, 215 of a step's 380 ms.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda" if found and recipe.device != "cpu" else "cpu")

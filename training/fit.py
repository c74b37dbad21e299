"""`Fit`: the stages of a recipe, in order, in a run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.tensorboard import SummaryWriter

from service.contract.errors import RunError
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import Prepared, Split
from training.evaluation import Labelled, calibrate, evaluate
from training.loop import Journal, Loop, Pass
from training.metrics import auc, logloss
from training.model import Model, build, joint_logits
from training.recipe import Recipe
from training.stages import Stage
from training.tuning import tune

SAVE_EVERY = 5.0
"""Seconds between two savings of a stage's state: what a kill can cost, and a hundred small domains should
not wait for the disk after each epoch."""


class _RunJournal(Journal):
    """Writes into a run's folder."""

    def __init__(self, run: Run, board: SummaryWriter) -> None:
        self.run, self.board = run, board
        self.log = run.logged()
        self.saved = 0.0

    def resume(self, key: str) -> Mapping[str, Any] | None:
        """From the run's saved state."""
        return self.run.load_state(key)

    def begin(self, key: str, epoch: int) -> None:
        """What a killed run logged after it last saved is trained, and logged, again."""
        self.log = [line for line in self.log if line["stage"] != key or line["epoch"] <= epoch]
        self.saved = time.monotonic()

    def note(self, line: Mapping[str, Any]) -> None:
        """To the log and to TensorBoard."""
        self.log.append(dict(line))
        for name in ("loss", "valid_auc"):
            self.board.add_scalar(f"{line['stage']}/{name}", line[name], line["epoch"])

    def due(self) -> bool:
        """Every few seconds."""
        return time.monotonic() - self.saved >= SAVE_EVERY

    def save(self, state: Mapping[str, Any]) -> None:
        """The log first, so that it is never behind the state."""
        self.run.log(self.log)
        self.run.save_state(state)
        self.saved = time.monotonic()

    def end(self) -> None:
        """The log is on disk."""
        self.run.log(self.log)


class Fit:
    """Runs the stages of a recipe in its folder, from wherever an earlier run was killed.

    What a stage does follows from the seed, its name and the epoch alone, so a run that was killed and
    resumed ends with the same weights, bit by bit, as one that was not.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, run: Run, progress: Progress) -> None:
        torch.set_num_threads(recipe.threads)
        self.recipe, self.prepared, self.run, self.progress = recipe, prepared, run, progress
        if unknown := recipe.tuning.lr_of.keys() - set(prepared.domains):
            raise RunError(f"tuning.lr_of names domains that do not exist: {', '.join(sorted(unknown))}")
        self.model = build(recipe, prepared.schema, prepared.domains)
        if sum(stage.rows == "each domain" for stage in self.model.paradigm.stages()) > 1:
            raise RunError(f"paradigm {recipe.paradigm.name} has more than one stage over each domain")
        self.train, self.valid = (self._rows(split) for split in ("train", "valid"))
        self.loop = Loop(recipe.seed, progress)

    def __call__(self) -> Model:
        """Train what is not trained yet, evaluate, and return the model."""
        if self.run.metrics is None:
            stages = self.model.paradigm.stages()
            joint = [stage.name for stage in stages if stage.rows == "all domains"]
            done = self.run.stage
            self.run.restore(self.model)
            with SummaryWriter(str(self.run.folder / "tensorboard")) as board:
                self.loop.journal = _RunJournal(self.run, board)
                for stage in stages:
                    if stage.rows == "each domain":
                        self._each_domain(stage)
                    elif done is None or joint.index(stage.name) > joint.index(done):
                        self._all_domains(stage)
            # What is evaluated is what was saved, and so what will be exported.
            self.run.restore(self.model)
            self._finish()
        self.run.restore(self.model)
        return self.model

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
        self.run.finish({**test, "valid": valid, **sizes})

    def _rows(self, split: Split) -> Rows:
        return Rows.encode(self.prepared.split(split), self.prepared.schema, self.prepared.domains)

    def _all_domains(self, stage: Stage) -> None:
        paradigm, general = self.model.paradigm, len(self.model.domains)

        def loss(rows: Rows) -> Tensor:
            # Rows are shuffled, so the first tenth, repeated under the general domain, makes an unbiased
            # estimate of a loss that weighs all rows' general logits by a tenth: at a tenth of its cost.
            part = rows[: round(self.recipe.general_share * len(rows))]
            both = rows.joined(part.under(general)) if len(part) else rows
            total = binary_cross_entropy_with_logits(paradigm(both), both.label, reduction="sum")
            return total / len(rows)

        def score() -> float:
            found = joint_logits(paradigm, self.valid).numpy()
            label, domain = self.valid.label.numpy(), self.valid.domain.numpy()
            aucs = np.array([auc(found[domain == at], label[domain == at]) for at in range(general)])
            defined = aucs[~np.isnan(aucs)]
            return float(defined.mean()) if len(defined) else -logloss(found, label)

        self.loop(Pass(stage.name, paradigm, stage.trains, self.recipe.joint, self.train, loss, score))
        self.run.save_weights(stage.name, paradigm.state_dict())

    def _each_domain(self, stage: Stage) -> None:
        for at, domain in enumerate(self.model.domains):
            if domain not in self.model.tuned:
                self._tune(stage, domain, self.train.of(at), self.valid.of(at))

    def _tune(self, stage: Stage, domain: str, train: Rows, valid: Rows) -> None:
        """Train a domain's pack on its rows, from the pack it has; nothing shared moves."""
        servable = self.model.paradigm.servable()
        servable.load_state_dict(self.model.pack(domain), strict=False)
        tune(
            servable,
            stage.trains,
            self.recipe.tuning,
            domain=domain,
            train=train,
            valid=valid,
            loop=self.loop,
            stage=stage.name,
        )
        tensors = servable.state_dict()
        owned = sorted(self.model.paradigm.owned)
        self.model.tuned[domain] = {name: tensors[name].clone() for name in owned}
        self.run.save_domain(domain, self.model.tuned[domain])

"""The one training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

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
from training.evaluation import Labelled, calibrate, evaluate
from training.metrics import auc, logloss
from training.model import Model, build, joint_logits, logits
from training.recipe import Optimisation, Recipe
from training.stages import Stage, train_mode, training_only

SAVE_EVERY = 5.0
"""Seconds between two savings of a stage's state: what a kill can cost, and a hundred small domains should
not wait for the disk after each epoch."""


@dataclass(frozen=True)
class Pass:
    """One optimisation: a stage over all domains, or a stage for one domain."""

    key: str
    module: nn.Module
    trains: frozenset[str]
    options: Optimisation
    rows: Rows
    loss: Callable[[Rows], Tensor]
    score: Callable[[], float]
    """AUC on validation, to choose the epoch by; minus the log loss where one class is missing."""
    pull_to_start: bool = False
    """L2 draws a parameter to where it started instead of to zero: rows of a table that no batch touches
    then keep their bits."""


class Fit:
    """Runs the stages of a recipe in its folder, from wherever an earlier run was killed.

    Batches and dropout follow from the seed, the stage and the epoch alone, so a run that was killed and
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
        self.log = run.logged()

    def __call__(self) -> Model:
        """Train what is not trained yet, evaluate, and return the model."""
        if self.run.metrics is None:
            stages = self.model.paradigm.stages()
            joint = [stage.name for stage in stages if stage.rows == "all domains"]
            done = self.run.stage
            self.run.restore(self.model)
            with SummaryWriter(str(self.run.folder / "tensorboard")) as self.board:
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

        self._optimise(Pass(stage.name, paradigm, stage.trains, self.recipe.joint, self.train, loss, score))
        self.run.save_weights(stage.name, paradigm.state_dict())

    def _each_domain(self, stage: Stage) -> None:
        for at, domain in enumerate(self.model.domains):
            if domain not in self.model.tuned:
                self._tune(stage, domain, self.train.of(at), self.valid.of(at))

    def _tune(self, stage: Stage, domain: str, train: Rows, valid: Rows) -> None:
        """Train a domain's pack on its rows, from the pack it has; nothing shared moves."""
        servable = self.model.paradigm.servable()
        servable.load_state_dict(self.model.pack(domain), strict=False)
        options = self.recipe.tuning
        options = options.model_copy(update={"lr": options.lr_of.get(domain, options.lr)})

        def loss(rows: Rows) -> Tensor:
            return binary_cross_entropy_with_logits(servable(*rows.arrays), rows.label)

        def score() -> float:
            found, label = logits(servable, {}, valid).numpy(), valid.label.numpy()
            measured = auc(found, label)
            return -logloss(found, label) if math.isnan(measured) else measured

        key = f"{stage.name}/{domain}"
        self._optimise(Pass(key, servable, stage.trains, options, train, loss, score, pull_to_start=True))
        tensors = servable.state_dict()
        owned = sorted(self.model.paradigm.owned)
        self.model.tuned[domain] = {name: tensors[name].clone() for name in owned}
        self.run.save_domain(domain, self.model.tuned[domain])

    def _optimise(self, work: Pass) -> None:
        """Adam with early stopping; the best epoch's tensors are in the module when it returns.

        Epoch 0, the module as it comes, is a candidate.
        """
        module, options = work.module, work.options
        moving = work.trains | {name for name, _ in module.named_buffers()}
        with training_only(module, work.trains) as parameters:
            l2 = 0.0 if work.pull_to_start else options.l2
            optimiser = torch.optim.Adam(parameters, lr=options.lr, weight_decay=l2, fused=True)
            state = self.run.load_state(work.key)
            if state is None:
                start = [parameter.detach().clone() for parameter in parameters]
                best = _tensors(module, moving)
                epoch, best_epoch, best_score = 0, 0, work.score()
            else:
                start, best = state["start"], state["best"]
                epoch, best_epoch, best_score = state["epoch"], state["best_epoch"], state["best_score"]
                module.load_state_dict(state["module"], strict=False)
                optimiser.load_state_dict(state["optimiser"])
            # What a killed run logged after it last saved is trained, and logged, again.
            self.log = [line for line in self.log if line["stage"] != work.key or line["epoch"] <= epoch]
            saved = time.monotonic()
            bar = self.progress.add_task(work.key, total=options.epochs, completed=epoch)
            while epoch < options.epochs and epoch - best_epoch < options.patience:
                epoch += 1
                began = time.perf_counter()
                loss = self._epoch(work, epoch, optimiser, start)
                seconds = time.perf_counter() - began
                found = work.score()
                # Not a number without validation rows: nothing can be chosen, and the last epoch stays.
                if found > best_score or math.isnan(best_score):
                    best_epoch, best_score, best = epoch, found, _tensors(module, moving)
                self._note(work.key, epoch, loss, found, seconds)
                if time.monotonic() - saved >= SAVE_EVERY:
                    self.run.log(self.log)
                    self.run.save_state(
                        {
                            "key": work.key,
                            "epoch": epoch,
                            "best_epoch": best_epoch,
                            "best_score": best_score,
                            "start": start,
                            "best": best,
                            "module": _tensors(module, moving),
                            "optimiser": optimiser.state_dict(),
                        }
                    )
                    saved = time.monotonic()
                self.progress.update(
                    bar,
                    completed=epoch,
                    description=f"{work.key}: AUC {best_score:.4f} at epoch {best_epoch}",
                )
            module.load_state_dict(best, strict=False)
            self.run.log(self.log)
            self.progress.update(bar, total=max(epoch, 1), completed=max(epoch, 1))

    def _epoch(
        self, work: Pass, epoch: int, optimiser: torch.optim.Optimizer, start: Sequence[Tensor]
    ) -> float:
        """One pass over the rows; returns the mean loss of its batches."""
        text = f"{self.recipe.seed}/{work.key}/{epoch}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        torch.manual_seed(seed)
        train_mode(work.module)
        normalised = any(isinstance(m, nn.BatchNorm1d) and m.training for m in work.module.modules())
        parameters = optimiser.param_groups[0]["params"]
        total, batches = torch.zeros(()), 0
        steps = len(work.rows) / work.options.batch  # an epoch's
        for batch in work.rows.shuffled(seed).batches(work.options.batch):
            if len(batch) == 1 and normalised:
                continue  # a BatchNorm has no statistics of one row
            optimiser.zero_grad()
            loss = work.loss(batch)
            torch.autograd.backward(loss)
            if work.pull_to_start and work.options.l2:
                for parameter, origin in zip(parameters, start, strict=True):
                    parameter.grad.add_(parameter.detach() - origin, alpha=work.options.l2)
            if work.options.schedule == "linear":
                done = (epoch - 1 + batches / steps) / work.options.epochs
                optimiser.param_groups[0]["lr"] = work.options.lr * max(1 - done, 0.0)
            optimiser.step()
            total, batches = total + loss.detach(), batches + 1
        return float(total / max(batches, 1))

    def _note(self, key: str, epoch: int, loss: float, auc: float, seconds: float) -> None:
        line = {"stage": key, "epoch": epoch, "loss": loss, "valid_auc": auc, "seconds": round(seconds, 3)}
        self.log.append(line)
        self.board.add_scalar(f"{key}/loss", loss, epoch)
        self.board.add_scalar(f"{key}/valid_auc", auc, epoch)


def _tensors(module: nn.Module, names: Set[str]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if name in names}

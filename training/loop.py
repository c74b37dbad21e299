"""`Loop`: the one training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from training.data.batches import Rows
from training.recipe import Optimisation
from training.stages import train_mode, training_only


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


@dataclass(frozen=True)
class Outcome:
    """What a pass came to."""

    epochs: int
    """That it ran."""
    best_epoch: int
    """Whose tensors the module has now; 0 is the module as it came."""
    best_score: float


class Journal:
    """Where a loop writes down what it does. This one keeps nothing."""

    def resume(self, key: str) -> Mapping[str, Any] | None:
        """Where the pass `key` stood when it was killed; None if it begins."""
        del key
        return None

    def begin(self, key: str, epoch: int) -> None:
        """The pass `key` begins, or goes on, after `epoch`."""

    def note(self, line: Mapping[str, Any]) -> None:
        """An epoch is done: its `stage`, `epoch`, `loss`, `valid_auc` and `seconds`."""

    def due(self) -> bool:
        """Whether to save where the pass stands."""
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep where the pass stands, for `resume`."""

    def end(self) -> None:
        """The pass is complete."""


class Loop:
    """Adam with early stopping.

    Batches and dropout follow from the seed, the pass's key and the epoch alone.
    """

    def __init__(self, seed: int, progress: Progress, journal: Journal | None = None) -> None:
        self.seed, self.progress = seed, progress
        self.journal = journal or Journal()

    def __call__(self, work: Pass) -> Outcome:
        """Train; the best epoch's tensors are in the module when it returns.

        Epoch 0, the module as it comes, is a candidate.
        """
        module, options, journal = work.module, work.options, self.journal
        moving = work.trains | {name for name, _ in module.named_buffers()}
        with training_only(module, work.trains) as parameters:
            l2 = 0.0 if work.pull_to_start else options.l2
            optimiser = torch.optim.Adam(parameters, lr=options.lr, weight_decay=l2, fused=True)
            state = journal.resume(work.key)
            if state is None:
                start = [parameter.detach().clone() for parameter in parameters]
                best = _tensors(module, moving)
                epoch, best_epoch, best_score = 0, 0, work.score()
            else:
                start, best = state["start"], state["best"]
                epoch, best_epoch, best_score = state["epoch"], state["best_epoch"], state["best_score"]
                module.load_state_dict(state["module"], strict=False)
                optimiser.load_state_dict(state["optimiser"])
            journal.begin(work.key, epoch)
            bar = self.progress.add_task(work.key, total=options.epochs, completed=epoch)
            while epoch < options.epochs and epoch - best_epoch < options.patience:
                epoch += 1
                began = time.perf_counter()
                loss = self.epoch(work, epoch, optimiser, start)
                seconds = round(time.perf_counter() - began, 3)
                found = work.score()
                # Not a number without validation rows: nothing can be chosen, and the last epoch stays.
                if found > best_score or math.isnan(best_score):
                    best_epoch, best_score, best = epoch, found, _tensors(module, moving)
                line = {"stage": work.key, "epoch": epoch, "loss": loss, "valid_auc": found}
                journal.note({**line, "seconds": seconds})
                if journal.due():
                    journal.save(
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
                self.progress.update(
                    bar,
                    completed=epoch,
                    description=f"{work.key}: AUC {best_score:.4f} at epoch {best_epoch}",
                )
            module.load_state_dict(best, strict=False)
            journal.end()
            self.progress.update(bar, total=max(epoch, 1), completed=max(epoch, 1))
        return Outcome(epoch, best_epoch, best_score)

    def epoch(
        self, work: Pass, epoch: int, optimiser: torch.optim.Optimizer, start: Sequence[Tensor]
    ) -> float:
        """One pass over the rows; returns the mean loss of its batches."""
        text = f"{self.seed}/{work.key}/{epoch}"
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


def _tensors(module: nn.Module, names: Set[str]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if name in names}

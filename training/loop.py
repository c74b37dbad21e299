"""`Loop`: the one training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from training.data.batches import Rows
from training.data.stream import Stream, after
from training.exchange import Exchange
from training.ranks import ALONE, Ranks
from training.recipe import Optimisation
from training.stages import train_mode, training_only


def in_any_order(rows: Rows | Stream, size: int, seed: int) -> Iterator[Rows]:
    """Batches of shuffled rows."""
    return rows.shuffled(seed).batches(size)


@dataclass(frozen=True)
class Pass:
    """One optimisation: a stage over all domains, or a stage for one domain."""

    key: str
    module: nn.Module
    trains: frozenset[str]
    options: Optimisation
    rows: Any
    """`Rows`, or a `Stream` of them: what `batches` takes."""
    loss: Callable[[Rows], Tensor]
    score: Callable[[], float]
    """AUC on validation, to choose the epoch by; minus the log loss where one class is missing, and minus
    its own loss for a stage that reads no labels."""
    batches: Callable[[Any, int, int], Iterator[Rows]] = in_any_order
    """An epoch's batches of some size, in an order that a seed decides."""
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
        """The pass `key` begins, or goes on, after so many whole epochs."""

    def note(self, line: Mapping[str, Any]) -> None:
        """An epoch is done: its `stage`, `epoch`, `loss`, `valid_auc` and `seconds`."""

    def due(self) -> bool:
        """Whether to save where the pass stands."""
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep where the pass stands, for `resume`."""

    def end(self) -> None:
        """The pass is complete."""


@dataclass
class Standing:
    """How far a pass has come."""

    epoch: int
    """Whole ones."""
    best_epoch: int
    best_score: float
    best: dict[str, Tensor]
    steps: int = 0
    """Of the epoch that runs."""
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of their losses."""
    generators: tuple[Tensor, ...] = ()
    """Where the random numbers of the epoch that runs stand."""


class Loop:
    """Adam with early stopping.

    Batches and dropout follow from the seed, the pass's key and the epoch alone. Matrices are multiplied in
    `precision`, where the module is. Several ranks share each batch, which is as many times larger; only the
    first one's journal is asked and told.
    """

    def __init__(
        self,
        seed: int,
        progress: Progress,
        journal: Journal | None = None,
        precision: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
    ) -> None:
        self.seed, self.progress, self.precision, self.ranks = seed, progress, precision, ranks
        self.journal = journal or Journal()

    def __call__(self, work: Pass) -> Outcome:
        """Train; the best epoch's tensors are in the module when it returns.

        Epoch 0, the module as it comes, is a candidate.
        """
        module, options, journal = work.module, work.options, self.journal
        moving = work.trains | {name for name, _ in module.named_buffers()}
        with training_only(module, work.trains) as parameters:
            optimiser = torch.optim.Adam(
                parameters,
                lr=options.lr,
                weight_decay=options.decay or (0.0 if work.pull_to_start else options.l2),
                decoupled_weight_decay=options.decay > 0,
                fused=True,
            )
            start = [parameter.detach().clone() for parameter in parameters] if work.pull_to_start else []
            state = self.ranks.agreed(journal.resume(work.key))
            if state is None:
                at = Standing(0, 0, self._score(work), _tensors(module, moving))
            else:
                start = [origin.to(device(module)) for origin in state["start"]]
                at = Standing(**state["standing"])
                module.load_state_dict(state["module"], strict=False)
                optimiser.load_state_dict(state["optimiser"])

            def save() -> None:
                journal.save(
                    {
                        "key": work.key,
                        "standing": vars(at) | {"generators": _generators(module) if at.steps else ()},
                        "start": start,
                        "module": _tensors(module, moving),
                        "optimiser": optimiser.state_dict(),
                    }
                )

            journal.begin(work.key, at.epoch)
            bar = self.progress.add_task(work.key, total=options.epochs, completed=at.epoch)
            while at.epoch < options.epochs and at.epoch - at.best_epoch < options.patience:
                began = time.perf_counter()
                for _ in self.steps(work, at, optimiser, start):
                    if journal.due():
                        save()
                        self.progress.update(bar, completed=at.epoch + at.steps / self._steps_of(work))
                loss = float(at.total) / max(at.steps, 1)
                seconds = round(time.perf_counter() - began, 3)
                at.epoch, at.steps, at.total, at.generators = at.epoch + 1, 0, torch.zeros(()), ()
                found = self._score(work)
                # Not a number without validation rows: nothing can be chosen, and the last epoch stays.
                if found > at.best_score or math.isnan(at.best_score):
                    at.best_epoch, at.best_score, at.best = at.epoch, found, _tensors(module, moving)
                line = {"stage": work.key, "epoch": at.epoch, "loss": loss, "valid_auc": found}
                journal.note({**line, "seconds": seconds})
                if journal.due():
                    save()
                self.progress.update(
                    bar,
                    completed=at.epoch,
                    description=f"{work.key}: AUC {at.best_score:.4f} at epoch {at.best_epoch}",
                )
            module.load_state_dict(at.best, strict=False)
            journal.end()
            self.progress.update(bar, total=max(at.epoch, 1), completed=max(at.epoch, 1))
        return Outcome(at.epoch, at.best_epoch, at.best_score)

    def steps(
        self, work: Pass, at: Standing, optimiser: torch.optim.Optimizer, start: Sequence[Tensor]
    ) -> Iterator[None]:
        """The steps of an epoch that are not done yet, one at a time."""
        options = work.options
        text = f"{self.seed}/{work.key}/{at.epoch + 1}"
        seed = _seed(text)
        torch.manual_seed(seed)
        _resume(at.generators)
        train_mode(work.module)
        normalised = any(isinstance(m, nn.BatchNorm1d) and m.training for m in work.module.modules())
        parameters, ranks = optimiser.param_groups[0]["params"], self.ranks
        exchange = Exchange(ranks, work.module, parameters) if ranks.size > 1 else None
        batches = work.batches(work.rows, options.batch * ranks.size, seed)
        for batch in after(batches, at.steps):
            if len(batch) // ranks.size < 1 + normalised:
                continue  # a rank would have no row, or a BatchNorm no statistics, which it has not of one
            if exchange is not None:
                # Not where the last step left them: so the ranks' states differ in nothing.
                torch.manual_seed(_seed(f"{text}/{at.steps}/{ranks.rank}"))
            optimiser.zero_grad()
            losses = self._backward(work, ranks.share(batch), len(batch))
            if exchange is not None:
                losses = [exchange(batch, losses)]
            for loss in losses:
                at.total = at.total.to(loss.device) + loss
            if work.pull_to_start and options.l2:
                for parameter, origin in zip(parameters, start, strict=True):
                    parameter.grad.add_(parameter.detach() - origin, alpha=options.l2)
            if options.clip is not None:
                nn.utils.clip_grad_norm_(parameters, options.clip)
            done = (at.epoch + at.steps / self._steps_of(work)) / options.epochs
            optimiser.param_groups[0]["lr"] = options.lr * _share(options, done)
            optimiser.step()
            at.steps += 1
            yield

    def _backward(self, work: Pass, own: Rows, rows: int) -> list[Tensor]:
        """Add to gradients what rows contribute to the loss of a batch of `rows`; the parts of that loss."""
        losses = []
        for part in own.batches(math.ceil(len(own) / work.options.accumulate)):
            with self._precision(work.module):
                loss = work.loss(part)
            if len(part) < rows:
                loss = loss * (len(part) / rows)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return losses

    def _steps_of(self, work: Pass) -> float:
        """An epoch's steps; the last one may be a part."""
        return len(work.rows) / (work.options.batch * self.ranks.size)

    def _score(self, work: Pass) -> float:
        with self._precision(work.module):
            # All must choose the same epoch, and stop after the same.
            return self.ranks.agreed(work.score())

    def _precision(self, module: nn.Module) -> torch.autocast:
        reduced = self.precision != torch.float32
        return torch.autocast(device(module).type, self.precision, enabled=reduced)


def device(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device


def _seed(text: str) -> int:
    """A seed that a text decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _share(options: Optimisation, done: float) -> float:
    """What part of its full value the learning rate has when a share of the epochs is done."""
    if done < options.warmup:
        return done / options.warmup
    return 1.0 if options.schedule == "constant" else max((1 - done) / (1 - options.warmup), 0.0)


def _generators(module: nn.Module) -> tuple[Tensor, ...]:
    """Where the generators of random numbers stand: the CPU's, and the module's device's."""
    at = device(module)
    return torch.get_rng_state(), *([torch.cuda.get_rng_state(at)] if at.type == "cuda" else [])


def _resume(generators: Sequence[Tensor]) -> None:
    if generators:
        torch.set_rng_state(generators[0])
    if len(generators) > 1:
        torch.cuda.set_rng_state(generators[1])


def _tensors(module: nn.Module, names: Set[str]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if name in names}

"""Tuning: one domain's tensors, trained on its rows, with everything shared left as it is."""

from __future__ import annotations

import math

from torch import Tensor, nn

from service.contract.errors import RunError
from training.data.batches import Rows
from training.data.stream import Stream
from training.grades import Grades
from training.loop import Loop, Outcome, Pass, device
from training.losses import click
from training.metrics import auc, logloss
from training.model import logits
from training.paradigms._protocol import Paradigm
from training.recipe import Distil, Tuning


def tune(
    servable: nn.Module,
    trains: frozenset[str],
    options: Tuning,
    *,
    domain: str,
    train: Rows | Stream,
    valid: Rows,
    loop: Loop,
    stage: str = "tuning",
    distil: Distil | None = None,
    grades: Grades | None = None,
    most: int = 8192,
) -> Outcome:
    """Train a servable on one domain's rows, from the pack that it has.

    Args:
        servable: a domain's; it has the best epoch's tensors afterwards, which may be those it came with.
        trains: which of its parameters; they are the domain's own.
        options: the recipe's.
        domain: its name, for which the options may have a learning rate.
        train: the domain's training rows.
        valid: its validation rows, to choose the epoch by.
        loop: what runs it.
        stage: the stage's name.
        distil: how rows with a target teach.
        grades: how rows with a grade do.
        most: how many rows are scored at a time.
    """
    options = options.model_copy(update={"lr": options.lr_of.get(domain, options.lr)})
    train = train.to(device(servable))

    def loss(rows: Rows) -> Tensor:
        return click(servable(*rows.arrays), rows, distil, grades).mean()

    def score() -> float:
        found, label = logits(servable, {}, valid, most).numpy(), valid.label.numpy()
        measured = auc(found, label)
        return -logloss(found, label) if math.isnan(measured) else measured

    key = f"{stage}/{domain}"
    return loop(Pass(key, servable, trains, options, train, loss, score, pull_to_start=True))


def tuned_alone(paradigm: Paradigm, name: str) -> frozenset[str]:
    """What is tuned of a domain that the stages over all domains have not seen.

    Args:
        paradigm: decides.
        name: the paradigm's.

    Returns:
        What its stage over each domain trains; where it has none, every parameter that a domain owns.

    Raises:
        RunError: a domain owns no parameter.
    """
    parameters = {parameter for parameter, _ in paradigm.servable().named_parameters()}
    trains = paradigm.trained_alone() or paradigm.owned & parameters
    if not trains:
        raise RunError(f"under paradigm {name} a domain owns no parameter, so there is nothing to tune")
    return trains

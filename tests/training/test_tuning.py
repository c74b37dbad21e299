from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import nn

from service.contract.errors import RunError
from tests.conftest import Trained, train
from training.data.prepare import prepare
from training.loop import Journal, Loop
from training.model import build, logits
from training.recipe import Recipe
from training.tuning import tune, tuned_alone


def test_alone_it_is_the_second_stage_to_the_bit(tiny: Trained) -> None:
    """The servable under a domain's joint pack, tuned without a run, ends with the run's pack."""
    model, (train_rows, valid) = tiny.model, (tiny.rows(split) for split in ("train", "valid"))
    at = model.domains.index("mid")
    servable = model.paradigm.servable()
    servable.load_state_dict(model.paradigm.pack(at), strict=False)
    general = logits(model.paradigm.servable(), {}, valid)
    outcome = tune(
        servable,
        tuned_alone(model.paradigm, "plate"),
        tiny.recipe.tuning,
        domain="mid",
        train=train_rows.of(at),
        valid=valid.of(at),
        loop=Loop(tiny.recipe.seed, Progress(disable=True)),
    )
    state = servable.state_dict()
    assert outcome.epochs == 3
    assert all(torch.equal(state[name], tensor) for name, tensor in model.pack("mid").items())
    assert torch.equal(logits(model.paradigm.servable(), {}, valid), general)


def test_what_is_tuned_where_there_is_no_stage_over_each_domain(tiny: Trained, tmp_path: Path) -> None:
    mixed = train(tmp_path / "run", tiny.data, paradigm={"name": "mix"}).model.paradigm
    assert tuned_alone(mixed, "mix") == {"first_order.bias"}
    mixed.owned = frozenset()
    with pytest.raises(RunError, match="under paradigm mix a domain owns no parameter"):
        tuned_alone(mixed, "mix")


@pytest.mark.parametrize("name", ["plate", "finetune", "single"])
def test_else_what_that_stage_trains(name: str, tiny: Trained) -> None:
    recipe = Recipe.model_validate({**tiny.recipe.model_dump(mode="json"), "paradigm": {"name": name}})
    prepared = prepare(recipe.data.name, recipe.data.options, tiny.data)
    paradigm = build(recipe, prepared.schema, prepared.domains).paradigm
    (stage,) = (stage for stage in paradigm.stages() if stage.rows == "each domain")
    assert tuned_alone(paradigm, name) == stage.trains


def test_epoch_0_stays_where_nothing_is_better_and_a_journal_is_told(tiny: Trained) -> None:
    seen = []

    class Watching(Journal):
        def note(self, line: object) -> None:
            seen.append(line)

    servable = tiny.model.paradigm.servable()
    before = {name: tensor.clone() for name, tensor in servable.state_dict().items()}
    rows = tiny.rows("train").of(0)
    outcome = tune(
        servable,
        tuned_alone(tiny.model.paradigm, "plate"),
        tiny.recipe.tuning.model_copy(update={"lr": 1e30, "patience": 2}),
        domain="big",
        train=rows,
        valid=rows,
        loop=Loop(0, Progress(disable=True), Watching()),
    )
    assert (outcome.epochs, outcome.best_epoch) == (2, 0)
    assert len(seen) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in servable.state_dict().items())
    assert isinstance(servable, nn.Module)
    assert not servable.training

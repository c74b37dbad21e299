"""Two ranks, in processes of their own under `torchrun`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.contract import plugins
from service.contract.errors import RunError
from tests.conftest import TINY, Trained, train
from training import checkpoint
from training.data.batches import Rows
from training.exchange import Exchange
from training.model import build
from training.ranks import Ranks
from training.recipe import Recipe

PLAIN: dict[str, Any] = {
    "backbone": {"name": "deepfm", "hidden": [8, 4], "norm": "none", "dropout": 0.0},
    "paradigm": {"name": "mix"},
    "joint": {"epochs": 2, "batch": 250, "lr": 5e-3, "l2": 1e-4, "clip": 1.0},
}
"""Without what depends on how rows are spread over ranks: batch statistics and dropout."""

_FIT = """
import json, os, signal, sys
from pathlib import Path
import torch
from rich.progress import Progress
from training import fit, ranks
from training.checkpoint import Run
from training.data.prepare import prepare
from training.exchange import Exchange
from training.loop import Loop
from training.recipe import Recipe

folder, data, recipe, die, to = sys.argv[1:]
recipe, die = Recipe.model_validate(json.loads(recipe)), json.loads(die)
fit.SAVE_EVERY = fit._AT_WORK = 0
steps, original, exchange = Loop.steps, Run.save_state, Exchange.__call__

def dying(self, work, *rest):
    for done, _ in enumerate(steps(self, work, *rest)):
        if [work.key, rest[0].epoch, done] == die.get(os.environ["RANK"]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield

def checked(self, batch, losses):
    # What it does to gradients is what an all-reduce of all of them does.
    whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
    sums = [self.ranks.sum([each.reshape(-1)]).view_as(each) for each in whole]
    total = exchange(self, batch, losses)
    assert all(torch.equal(p.grad, each) for p, each in zip(self.parameters, sums, strict=True))
    return total

Loop.steps, Exchange.__call__ = dying, checked
try:
    with ranks.opened(torch.device("cpu")) as several, Progress(disable=True) as bars:
        prepared = several.first(lambda: prepare(recipe.data.name, recipe.data.options, Path(data)))
        run = Run(Path(folder), recipe, prepared, several)
        model = fit.Fit(recipe, prepared, run, bars, ranks=several)()
        found = {f"paradigm.{name}": each for name, each in model.paradigm.state_dict().items()}
        for domain in model.domains:
            found |= {f"{domain}.{name}": each for name, each in model.tuned.get(domain, {}).items()}
        torch.save(found, f"{to}-{several.rank}.pt")
except fit.RunError as error:
    sys.exit(f"error: {error}")
"""


def by_ranks(
    folder: Path, root: Path, die: dict[str, list[Any]] | None = None, /, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """Fit the tiny recipe under `torchrun`; each rank leaves its model beside the folder.

    Args:
        folder: of the run.
        root: of prepared data.
        die: by rank, the pass, the number of its whole epochs and of steps after which it is killed.
        changes: what differs from the tiny recipe.
    """
    script = folder.with_name("fit.py")
    script.write_text(_FIT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    recipe = json.dumps({**TINY, **changes})
    arguments = [str(folder), str(root), recipe, json.dumps(die or {}), str(folder)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


def left(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder.with_name(f"{folder.name}-{rank}.pt"), weights_only=True)
    return found


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("ranks") / "run"
    done = by_ranks(folder, data_root)
    assert done.returncode == 0, done.stderr
    return folder


def test_all_ranks_end_with_the_model_that_was_saved(whole: Path, tiny: Trained) -> None:
    assert same(left(whole), left(whole, 1))
    *_, model, metrics = checkpoint.load(whole, tiny.data)
    state = model.paradigm.state_dict()
    assert all(torch.equal(state[name], left(whole)[f"paradigm.{name}"]) for name in state)
    assert set(model.tuned) == set(model.domains)
    assert metrics["macro"]["joint"]["auc"] == pytest.approx(0.66, abs=0.1)
    # It is another model than that of one process: its batches are twice as large.
    assert not torch.equal(
        state["general.embedding.table"], tiny.model.paradigm.state_dict()["general.embedding.table"]
    )


def test_the_log_has_every_epoch_of_all_ranks_once(whole: Path, tiny: Trained) -> None:
    epochs = [
        [
            (line["stage"], line["epoch"])
            for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        ]
        for run in (whole, tiny.folder)
    ]
    assert len(set(epochs[0])) == len(epochs[0])
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert not list(whole.glob("log-*"))
    assert not list(whole.glob("state*"))


@pytest.mark.parametrize("data", [{}, {"part": 700}], ids=["memory", "streamed"])
def test_it_is_one_process_with_the_whole_batch(
    data: dict[str, int], data_root: Path, tmp_path: Path
) -> None:
    changes = {**PLAIN, "data": {**TINY["data"], **data}}
    done = by_ranks(tmp_path / "two", data_root, **changes)
    assert done.returncode == 0, done.stderr
    one = train(tmp_path / "one", data_root, **{**changes, "joint": {**PLAIN["joint"], "batch": 500}})
    for name, tensor in one.model.paradigm.state_dict().items():
        torch.testing.assert_close(left(tmp_path / "two")[f"paradigm.{name}"], tensor, rtol=1e-4, atol=1e-5)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    for lines in zip(*logs, strict=True):
        assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4)


# Within the second epoch of the stage that is trained together; and while each rank tunes a domain.
@pytest.mark.parametrize(
    "die", [{"1": ["joint", 1, 4]}, {"1": ["tuning/small", 1, 1]}], ids=["joint", "tuning"]
)
def test_a_killed_rank_ends_the_run_and_the_same_command_ends_as_if_nothing_had_been(
    die: dict[str, list[Any]], whole: Path, data_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed = by_ranks(folder, data_root, die)
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr
    (line,) = [line for line in killed.stderr.splitlines() if line.startswith("error: process 0 of 2")]
    assert "another one has ended" in line
    assert "goes on from what was saved" in line
    assert (folder / "state.pt").exists() or (folder / "state-1.pt").exists()
    assert not [path for path in folder.rglob(".*") if path.is_file()]

    resumed = by_ranks(folder, data_root)
    assert resumed.returncode == 0, resumed.stderr
    assert same(left(folder), left(whole))
    assert same(left(folder, 1), left(whole))
    assert not list(folder.glob("state*"))


def test_a_run_of_another_number_of_processes_is_refused(whole: Path, data_root: Path) -> None:
    with pytest.raises(RunError, match="another number of processes"):
        train(whole, data_root)


def test_work_goes_largest_first_to_who_has_least() -> None:
    sizes = [5, 90, 40, 60, 1]
    assert [Ranks(rank, 2).split(sizes) for rank in (0, 1)] == [[0, 1, 4], [2, 3]]
    assert Ranks().split(sizes) == [0, 1, 2, 3, 4]


def test_shares_are_the_batch_and_their_first_tenths_its_first_tenth(tiny: Trained) -> None:
    batch = tiny.rows("train")[:200]
    shares = [Ranks(rank, 2).share(batch) for rank in (0, 1)]
    assert [len(share) for share in shares] == [100, 100]
    tenth = torch.cat([share.item_ids[:10] for share in shares]).sort(0).values
    assert torch.equal(tenth, batch[:20].item_ids.sort(0).values)
    assert [len(Ranks(rank, 2).share(batch[:3])) for rank in (0, 1)] == [2, 1]


@pytest.mark.parametrize("paradigm", plugins.names("training.paradigms"))
def test_no_paradigm_has_gradients_in_rows_of_a_table_that_are_not_sent(paradigm: str, tiny: Trained) -> None:
    recipe = Recipe.model_validate({**tiny.recipe.model_dump(mode="json"), "paradigm": {"name": paradigm}})
    model = build(recipe, tiny.prepared.schema, tiny.prepared.domains).paradigm.train()
    batch: Rows = tiny.rows("train").shuffled(0)[:30]
    torch.autograd.backward(model.both(batch, batch[:3].under(3)).square().sum())
    exchange = Exchange(Ranks(0, 2), model, list(model.parameters()))
    unread = torch.ones(tiny.prepared.schema.rows, dtype=torch.bool)
    unread[exchange.read_by(batch)] = False
    assert unread.any()
    tables = [parameter for parameter in model.parameters() if id(parameter) in exchange.tables]
    assert tables
    assert not any(table.grad[unread].any() for table in tables if table.grad is not None)

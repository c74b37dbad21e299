"""Rows a second of several ranks beside one process, in interleaved rounds, and the memory that each takes.

All train the same model on the same rows with one thread a process, in batches of `BATCH` rows a process, so
a step of two ranks is a step of twice as many rows. A round is an epoch; what is timed is the epoch, and
apart from it the validation after it, which ranks share.

As a module it is such a process: `python -m loadtest.bench_ranks TASK`, alone or under `torchrun`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import loadtest
from loadtest.bench_training import Ours, seconds_of
from loadtest.rivals.rival import RivalError
from service.contract import files
from training import ranks
from training.data.batches import Rows
from training.data.prepare import prepare
from training.recipe import Recipe

BATCH = 8192


class Team:
    """So many ranks, which train for an epoch when they are told to.

    Raises:
        RivalError: they did not start.
    """

    def __init__(self, size: int, task: Path) -> None:
        self.size, self.log = size, task.with_name(f"{size}.log")
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(launcher if size > 1 else []), "loadtest.bench_ranks", str(task)],
                cwd=Path(loadtest.__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def round(self) -> dict[str, float]:
        """An epoch: `training` and `scoring`, in seconds."""
        answer: dict[str, float] = self._answer("round")
        return answer

    def peaks(self) -> list[float]:
        """Of every rank, the most MB that it has had in memory; they end with that."""
        answer: list[float] = self._answer("end")
        return answer

    def close(self) -> None:
        """Stop them."""
        self.process.terminate()
        self.process.communicate()

    def _answer(self, told: str) -> Any:  # noqa: ANN401 - JSON
        if self.process.stdin is None or self.process.stdout is None:
            raise RivalError("the ranks have no input or output")
        try:
            self.process.stdin.write(f"{told}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["they said nothing"]
            raise RivalError(f"{self.size} ranks ended: {said[-1]}")
        return json.loads(line)


def bench(recipe: Recipe, out: Path, *, data: Path, size: int, rounds: int) -> dict[str, Any]:
    """Run one process and several in turns; returns the report, and puts its `ranks` into the file `out`.

    Args:
        recipe: what to train; its batch is `BATCH` here.
        out: the report's file; what else it has stays.
        data: the folder of prepared data sets.
        size: how many ranks.
        rounds: how many are counted; one goes before them to warm up.
    """
    recipe = recipe.model_copy(update={"joint": recipe.joint.model_copy(update={"batch": BATCH})})
    prepared = prepare(recipe.data.name, recipe.data.options, data)
    taken: dict[int, list[dict[str, float]]] = {1: [], size: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdctr-bench-")))
        task = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "folder": str(folder)}
        files.write(folder / "task.json", json.dumps(task))
        teams = {}
        for each in (1, size):
            teams[each] = Team(each, folder / "task.json")
            stack.callback(teams[each].close)
        order = np.random.default_rng(0)
        for at in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
            for each in order.permutation([1, size]).tolist():
                found = teams[each].round()
                if at:
                    taken[each].append(found)
        peaks = {each: team.peaks() for each, team in teams.items()}
    rows = prepared.split("train").height
    training = {each: np.array([found["training"] for found in taken[each]]) for each in taken}
    whole = {each: training[each] + [found["scoring"] for found in taken[each]] for each in taken}
    report: dict[str, Any] = {
        "data": prepared.about.source,
        "vocabulary": prepared.schema.rows,
        "rows": rows,
        **{f"rows_per_s_{each}": rows / float(np.median(times)) for each, times in training.items()},
        "ratio": float(np.median(training[1] / training[size])),
        "ratio_quartiles": np.quantile(training[1] / training[size], [0.25, 0.75]).tolist(),
        "ratio_with_validation": float(np.median(whole[1] / whole[size])),
        **{f"peak_mb_{each}": found for each, found in peaks.items()},
        "processes": size,
        "batch": BATCH,
        "rounds": rounds,
    }
    before = json.loads(out.read_text()) if out.exists() else {}
    files.write(out, json.dumps({**before, "ranks": report}, indent=1))
    return report


def show(report: Mapping[str, Any], console: Console) -> None:
    """The report in words."""
    for size in (1, report["processes"]):
        peaks = ", ".join(f"{peak:,.0f} MB" for peak in report[f"peak_mb_{size}"])
        console.print(f"{size} x {report['batch']}: {report[f'rows_per_s_{size}']:,.0f} rows/s, {peaks}")
    low, high = report["ratio_quartiles"]
    console.print(
        f"{report['ratio']:.2f} times as fast (quartiles {low:.2f} to {high:.2f}), with validation "
        f"{report['ratio_with_validation']:.2f}; {report['data']}, V = {report['vocabulary']:,}, median of "
        f"{report['rounds']} interleaved rounds",
        soft_wrap=True,
    )


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """Reports of one number of ranks as the table of a page."""
    size, batch = reports[0]["processes"], f"{reports[0]['batch']:,}"
    heads = ["data", "rows of tables", f"1 × {batch}, rows/s", f"{size} × {batch}, rows/s", "times as fast"]
    heads += ["quartiles", "with validation", "MB, alone", "MB, each"]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for report in reports:
        low, high = report["ratio_quartiles"]
        lines.append(
            f"| {report['data']} | {report['vocabulary']:,} | {report['rows_per_s_1']:,.0f} "
            f"| {report[f'rows_per_s_{size}']:,.0f} | {report['ratio']:.2f} | {low:.2f} to {high:.2f} "
            f"| {report['ratio_with_validation']:.2f} | {report['peak_mb_1'][0]:,.0f} "
            f"| {max(report[f'peak_mb_{size}']):,.0f} |"
        )
    return "\n".join(lines)


def main(path: Path) -> None:
    """Train for an epoch whenever a line comes in; rank 0 reads it, and answers."""
    task = json.loads(path.read_text())
    recipe = Recipe.model_validate(task["recipe"])
    with ranks.opened(torch.device("cpu")) as all_ranks:
        prepared = prepare(recipe.data.name, recipe.data.options, Path(task["data"]))
        rows = Rows.encode(prepared.split("train"), prepared.schema, prepared.domains)
        ours = Ours(recipe, prepared, rows, path.parent / f"run-{all_ranks.size}", ranks=all_ranks)
        while (told := all_ranks.agreed(sys.stdin.readline() if all_ranks.leads else "")) == "round\n":
            seconds = {"training": ours.seconds(), "scoring": seconds_of(ours.stopped.work.score)}
            if all_ranks.leads:
                _say(seconds)
        if told:
            peaks = torch.zeros(all_ranks.size)
            peaks[all_ranks.rank] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if all_ranks.size > 1:
                peaks = all_ranks.sum([peaks])
            if all_ranks.leads:
                _say(peaks.tolist())


def _say(answer: object) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

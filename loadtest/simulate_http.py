"""Experiments over HTTP: worlds in which it is known how each should end.

A bundle is trained and exported, its packs lie in a Redis, a service answers and logs, the command line
begins and `service guard` decides. Only the users are simulated, and with them the time: a day is one request
of each, and it is over when all are answered.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.contest import Contest
from loadtest.exported import Exported, export
from loadtest.redis_server import redis_server
from loadtest.server import free_port, service
from loadtest.shoppers import Shoppers
from loadtest.world import Case, Desk, Watch, World
from service.contract import files
from service.experiments.canary import MARGIN, SHARES
from training.data.sources import synthetic

WORLDS = ("better", "worse", "loud")
PROMOTED, BACK, STOPPED = "promoted", "taken back", "stopped"
_SHIFT = 0.6
"""Of the logits of a pack that predicts too much."""


@dataclass(frozen=True)
class Size:
    """What is simulated."""

    units: int = 60_000
    """Users; a trial has half of them in its last step."""
    domain: str = "shop"
    rows: int = 120_000
    """That the model is trained on, over all domains."""
    lift: float = 0.03
    """By which one pack's clicks are to be above the other's."""
    candidates: int = 20
    shown: int = 5


def simulate(size: Size, folder: Path, console: Console, worlds: Collection[str] = WORLDS) -> dict[str, Any]:
    """Worlds, one after the other.

    Args:
        size: of each.
        folder: for what is made; of a world that ends wrong it stays.
        console: told how it goes.
        worlds: which.
    """
    stage = _Stage(size, folder, console)
    each = []
    for case in stage.cases():
        if case.name not in worlds:
            continue
        place = folder / case.name
        shutil.rmtree(place, ignore_errors=True)
        console.print(f"world {case.name}: {case.says}; true lift {100 * case.lift.value:+.2f} %")
        found = stage.play(case, place)
        each.append(found)
        console.print(f"  {found['decision']} after {found['days']} days, {found['seconds']:.0f} s")
        if found["right"]:
            shutil.rmtree(place)
    if all(found["right"] for found in each):
        shutil.rmtree(stage.made_in)
    return {
        "worlds": len(each),
        "right": sum(found["right"] for found in each),
        "size": asdict(size),
        "margin": MARGIN,
        "shares": list(SHARES),
        "each": each,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The worlds as a table."""
    cells = [
        [
            "the new pack",
            "true lift",
            "users",
            "days",
            "requests",
            "clicks",
            "seconds",
            "decision",
            "then has",
        ],
        ["---"] * 9,
        *(
            [
                found["says"],
                f"{100 * found['true_lift']:+.2f} %",
                f"{found['units']:,}",
                str(found["days"]),
                f"{found['requests']:,}",
                f"{found['clicks']:,}",
                f"{found['seconds']:.0f}",
                found["decision"],
                f"{100 * found['new_has']:g} %",
            ]
            for found in report["each"]
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


@dataclass(frozen=True)
class _Stage:
    """The model that all worlds have, and their users."""

    size: Size
    folder: Path
    console: Console

    @property
    def made_in(self) -> Path:
        return self.folder / "model"

    @cached_property
    def source(self) -> synthetic.Synthetic:
        return synthetic.open(synthetic.Options.model_validate(self._data))

    @cached_property
    def _data(self) -> dict[str, Any]:
        default = synthetic.Options().domains
        whole = sum(default.values())
        domains = {name: max(1, rows * self.size.rows // whole) for name, rows in default.items()}
        return {"users": self.size.units, "domains": domains}

    @cached_property
    def made(self) -> Exported:
        shutil.rmtree(self.made_in, ignore_errors=True)
        recipe = {
            "name": "worlds",
            "data": {"name": "synthetic", **self._data},
            "backbone": {"name": "deepfm", "hidden": [32, 16]},
            "joint": {"epochs": 3, "batch": 1024, "lr": 4e-3, "schedule": "linear"},
            "tuning": {"epochs": 2, "batch": 512, "lr": 5e-3, "schedule": "linear"},
        }
        return export(self.made_in, {}, recipe)

    @cached_property
    def shoppers(self) -> Shoppers:
        return Shoppers(self.source, self.size.domain, self.size.candidates, self.size.shown)

    def cases(self) -> list[Case]:
        """The worlds that are played, with packs made for them."""
        self.console.print("a model is trained and exported, and a pack of it made worse")
        contest = Contest(self.made, self.source, self.shoppers)
        worse = contest.worse(self.size.lift)
        up, down = contest.lift(contest.own, worse), contest.lift(worse, contest.own)
        base = self.made.bundle.base
        good, bad, loud = (
            pack.to_bytes(base) for pack in (contest.pack(), contest.pack(worse), contest.pack(shift=_SHIFT))
        )
        same = replace(up, value=0.0, se=0.0, rates=(up.rates[0], up.rates[0]))
        return [
            Case("better", "better", PROMOTED, up, bad, good, trial=True, seed=1),
            Case("worse", "worse", BACK, down, good, bad, trial=True, seed=2),
            Case("loud", "predicts too many clicks", STOPPED, same, good, loud, trial=False, seed=3),
        ]

    def play(self, case: Case, place: Path) -> dict[str, Any]:
        """One world, from the publication to what users get in the end."""
        began = time.monotonic()
        place.mkdir(parents=True)
        port = free_port()
        settings = {
            "MDCTR_PORT": str(port),
            "MDCTR_EXPOSURES": str(place / "log"),
            "MDCTR_EXPERIMENTS_SECONDS": "0.2",
            "MDCTR_DEADLINE_MS": "10000",
        }
        bundle = str(self.made.bundle.path)
        with redis_server() as store:
            desk = Desk(place, self.size.domain, bundle, store)
            old, new = desk.publish(case)
            settings["MDCTR_EXPERIMENTS"] = store
            with service(self.made.bundle.path, store, place / "service.log", settings) as url:
                watch = Watch(url)
                world = World(case, self.shoppers, desk, watch, port)
                found = world.play(new)
                found |= world.after(new if found["decision"] == PROMOTED else old, new)
        share = 1.0 if case.ends == PROMOTED else 0.0
        found["right"] = (found["decision"], found["new_has"], found["recorded"]) == (case.ends, share, True)
        found["seconds"] = time.monotonic() - began
        files.write(place / "world.json", json.dumps(found, indent=1))
        return found

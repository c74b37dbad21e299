"""`World`: one experiment as it is really run, from the publication to what users get in the end.

The processes know nothing of each other: a service that answers and logs, the commands that begin and look
(`Desk`), and the users. Only the users, and with them the days, are simulated.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import redis

from loadtest.contest import Lift
from loadtest.shoppers import Shoppers, Told
from service.contract.errors import MdctrError
from service.contract.pack import version
from service.experiments.canary import NEW, OLD

_HOLD = 0.5
"""Seconds that a step of a trial lasts at least; a simulated day takes longer."""
_SOON = 30.0
"""Seconds within which a service has what was written for it."""
_MOST_DAYS = 28
_EXPERIMENT = "probabilities"
_PREDICTED = 0.85
"""Clicks over predicted clicks below which an arm is stopped."""


class WorldError(MdctrError):
    """A command or the service did not do what it should."""


@dataclass(frozen=True)
class Case:
    """A kind of world."""

    name: str
    says: str
    ends: str
    """As it should."""
    lift: Lift
    """Of the new pack's clicks over the old one's, in truth."""
    old: bytes
    new: bytes
    trial: bool
    """Whether `packs promote --canary` begins it; else it is an experiment with a guardrail."""
    seed: int


@dataclass(frozen=True)
class Desk:
    """Whoever types the commands."""

    place: Path
    domain: str
    bundle: str
    store: str

    def publish(self, case: Case) -> tuple[str, str]:
        """Publish the bundle, with the old pack live and the new one kept; their versions."""
        self("export", "publish", self.bundle, "--store", self.store)
        paths = [self.place / f"{name}.safetensors" for name in (OLD, NEW)]
        for path, data in zip(paths, (case.old, case.new), strict=True):
            path.write_bytes(data)
        self("export", "packs", "put", self.bundle, *map(str, paths), "--store", self.store)
        old, new = version(case.old), version(case.new)
        self("export", "packs", "promote", self.bundle, f"{self.domain}={old}", "--store", self.store)
        return old, new

    def begin(self, case: Case, new: str) -> str:
        """Begin the trial, or the experiment; its name."""
        if case.trial:
            given = ["--canary", "--experiments", self.store, "--hold", str(_HOLD / 3600), "--json"]
            asked = ["packs", "promote", self.bundle, f"{self.domain}={new}", "--store", self.store, *given]
            return str(json.loads(self("export", *asked))["name"])
        arms = {OLD: {"weight": 1}, NEW: {"weight": 1, "version": {self.domain: new}}}
        experiment = {
            "name": _EXPERIMENT,
            "unit": "user",
            "slice": [0, 1],
            "domains": [self.domain],
            "arms": arms,
            "guardrails": [
                {"metric": "ctr_lift", "min": -0.02, "action": "stop"},
                {"metric": "calibration", "min": _PREDICTED, "action": "stop"},
            ],
        }
        path = self.place / "experiments.json"
        path.write_text(json.dumps({"version": 1, "layers": {"packs": {"experiments": [experiment]}}}))
        self("service", "experiments", "put", str(path), self.store)
        return _EXPERIMENT

    def look(self) -> list[dict[str, Any]]:
        """What a guard does that looks once."""
        log = str(self.place / "log")
        told = self("service", "guard", log, "--experiments", self.store, "--store", self.store, "--once")
        return [json.loads(line) for line in told.splitlines()]

    def __call__(self, module: str, *arguments: str) -> str:
        """What a command says.

        Raises:
            WorldError: it ended with another code than 0.
        """
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = f"`python -m {module} {' '.join(arguments)}` ended with {done.returncode}: {done.stderr}"
            raise WorldError(said)
        return done.stdout


@dataclass(frozen=True)
class Watch:
    """What the service says of itself."""

    url: str

    def written(self) -> float:
        """Rows of the log that are on disk."""
        values = {"mdctr_exposures_written_total": 0.0, "mdctr_exposures_dropped_total": 0.0}
        for line in httpx2.get(f"{self.url}/metrics").text.splitlines():
            name, _, value = line.rpartition(" ")
            if (key := name.partition("{")[0]) in values:
                values[key] += float(value)
        if lost := values["mdctr_exposures_dropped_total"]:
            raise WorldError(f"{lost:g} rows of the log were dropped")
        return values["mdctr_exposures_written_total"]

    def document(self) -> str | None:
        """The version of the document that is followed."""
        found = httpx2.get(f"{self.url}/info").json()["experiments"]
        if found["refused"] is not None:
            raise WorldError(f"the service refuses the document: {found['refused']['reason']}")
        return str(found["version"]) if found["version"] else None

    def serving(self, domain: str) -> str:
        """The version of a domain's pack that answers."""
        there = httpx2.get(f"{self.url}/v1/domains").json()["domains"]
        return str(next(each["serving"] for each in there if each["domain"] == domain))


@dataclass(frozen=True)
class World:
    """A case that is played."""

    case: Case
    shoppers: Shoppers
    desk: Desk
    watch: Watch
    port: int

    def play(self, new: str) -> dict[str, Any]:
        """Day by day, until the guard has decided."""
        random = np.random.default_rng(self.case.seed)
        before = self.watch.document()
        name = self.desk.begin(self.case, new)
        before = self._followed(before)
        steps: list[dict[str, Any]] = []
        rows, days = self.watch.written(), list[Told]()
        decision, why = "undecided", ""
        while decision == "undecided" and len(days) < _MOST_DAYS:
            days.append(told := self.shoppers.day(random, self.port))
            rows += told.requests + told.clicks
            _until(partial(self._logged, rows), "the log does not have the day's rows")
            events = [event for event in self.desk.look() if event["experiment"] == name]
            mine = {arm: told.arms.get(arm, 0) for arm in (OLD, NEW)}
            steps.append({"day": len(days), "units": mine, "events": [event["what"] for event in events]})
            for event in events:
                if event["what"] != "next":
                    decision, why = event["what"], event["why"]
            if events:
                before = self._followed(before)
        lift = self.case.lift
        return {
            "world": self.case.name,
            "says": self.case.says,
            "true_lift": lift.value,
            "true_lift_se": lift.se,
            "true_click_rates": {NEW: lift.rates[0], OLD: lift.rates[1]},
            "units": len(self.shoppers),
            "units_in_the_last_step": sum(steps[-1]["units"].values()),
            "days": len(days),
            "requests": sum(told.requests for told in days),
            "clicks": sum(told.clicks for told in days),
            "decision": decision,
            "expected": self.case.ends,
            "why": why,
            "steps": steps,
        }

    def after(self, left: str, new: str) -> dict[str, Any]:
        """A day after the decision: what share of the users the new pack has, and whether it is on record.

        Args:
            left: the version that is to be live.
            new: that was tried.
        """
        domain = self.shoppers.domain
        _until(lambda: self.watch.serving(domain) == left, f"{left} is not served")
        told = self.shoppers.day(np.random.default_rng(0), self.port)
        with redis.Redis.from_url(self.desk.store) as raw:
            (entry,) = raw.lrange("mdctr:experiments", -1, -1)
        last = json.loads(entry)
        by_guard = last["by"] == "guard" and self.case.ends in last["why"]
        return {"new_has": told.packs.get(new, 0) / told.requests, "recorded": by_guard}

    def _logged(self, rows: float) -> bool:
        return self.watch.written() >= rows

    def _followed(self, before: str | None) -> str | None:
        _until(lambda: self.watch.document() != before, "the service does not follow the document")
        return self.watch.document()


def _until(true: Callable[[], bool], failure: str) -> None:
    end = time.monotonic() + _SOON
    while not true():
        if time.monotonic() > end:
            raise WorldError(failure)
        time.sleep(0.05)

"""Traffic as users would send it, by Locust: domains, users and items as popular as they are.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8080 --bundle runs/.../bundles/... \
        -u 50 -r 50 -t 60s --rate 5

Each of `-u` users sends `--rate` requests a second at moments of its own, whether or not the last answer
came late (`wait_time`): a start that is late is counted, and too many of them fail the test, because the rate
was then not what was asked for. Latencies count from the moment due. At the end `--budgets` decides the exit
code.

Nothing else imports this module: Locust replaces parts of the standard library by gevent's.
"""

from __future__ import annotations

import random
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from rich.console import Console

from loadtest.budgets import Budgets, Observed, conclude
from loadtest.traffic import JSON, Mix, Traffic
from service.contract.bundle import Bundle

_LATE = 0.005
"""Seconds after the moment due at which a start is late."""
_EVENTS = "/v1/events"
OBSERVED = Observed()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--bundle", default="bundle", help="The bundle that is served: its items and fields.")
    parser.add_argument("--rate", type=float, default=1.0, help="Requests a second of one user.")
    parser.add_argument("--seed", type=int, default=0, help="Of users, items and clicks.")
    parser.add_argument("--click-rate", type=float, default=0.0, help="Share of requests with a click.")
    parser.add_argument("--candidates", type=int, default=0, help="Of every request; 0 is a mix.")
    parser.add_argument("--budgets", default=str(Path(__file__).with_name("budgets.yaml")), help="A file.")
    parser.add_argument("--reports", default="runs/locust", help="Folder for the reports.")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _open(environment: Environment, **_: Any) -> None:  # noqa: ANN401 - what Locust gives
    options: Namespace = environment.parsed_options  # type: ignore[assignment]
    mix: dict[str, Any] = {"click_rate": options.click_rate, "units": True}
    if options.candidates:
        mix["candidates"] = {options.candidates: 1.0}
    Ranker.traffic = Traffic.of(Bundle.open(Path(options.bundle)), Mix.model_validate(mix), options.seed)
    Ranker.rate, Ranker.budgets = options.rate, Budgets.load(Path(options.budgets))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _judge(environment: Environment, **_: Any) -> None:  # noqa: ANN401
    if hasattr(Ranker, "budgets"):
        folder = Path(environment.parsed_options.reports)  # type: ignore[union-attr]
        code = conclude(Ranker.budgets, OBSERVED, folder, Console(width=120))
        # A fault of this file is no verdict on the service.
        environment.process_exit_code = 2 if environment.runner and environment.runner.exceptions else code


class Ranker(FastHttpUser):
    """A client that ranks, and sometimes clicks."""

    traffic: Traffic
    rate: float
    budgets: Budgets
    clicks_are_taken = True
    """Until the service says that it has no such route."""
    _seeds = random.Random(0)  # noqa: S311 - no secret

    def on_start(self) -> None:
        """Choose moments of its own."""
        self._chance = random.Random(self._seeds.random())  # noqa: S311
        self._due = time.perf_counter()

    def wait_time(self) -> float:
        """Until the next request is due: independent of the last one, and of how long it took."""
        self._due += self._chance.expovariate(self.rate)
        return max(0.0, self._due - time.perf_counter())

    @task
    def rank(self) -> None:
        """Ask, and click."""
        if time.perf_counter() - self._due > _LATE:
            OBSERVED.late_starts += 1
        asked = self.traffic.ask()
        headers = dict([JSON.split(": ")])
        with self.client.post(
            asked.path,
            data=asked.body.decode(),
            headers=headers,
            name=f"rank {asked.domain}",
            catch_response=True,
        ) as response:
            OBSERVED.add(asked.domain, response.status_code, (time.perf_counter() - self._due) * 1e3)
            shed = response.status_code in {429, 503, 504}
            if shed:
                response.success()  # the budget of refusals judges it
            request_id = response.json()["request_id"] if response.status_code == 200 else None
        if request_id is None or not self.clicks_are_taken:
            return
        if (click := self.traffic.click(asked, request_id)) is not None:
            self._click(click, headers)

    def _click(self, click: dict[str, Any], headers: dict[str, str]) -> None:
        with self.client.post(_EVENTS, json=click, headers=headers, catch_response=True) as response:
            if response.status_code == 404:
                type(self).clicks_are_taken = False
                response.success()

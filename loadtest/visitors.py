"""`Visitors`: traffic that moves every panel of the dashboard: good requests, bad ones, and clicks."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2

from loadtest.traffic import Asked, Mix, Traffic
from service.contract.bundle import Bundle

_SHOWN = 5
"""Items of an answer that users see, from the top."""
_TOLD = 20
"""Answers whose events are sent together."""
_STRANGER, _STRANGE_ID = "nobody-has-ever-seen-this", 10**12
_HASTY = {"x-deadline-ms": "0.001"}
EXPERIMENTS = json.dumps(
    {
        "version": 1,
        "layers": {
            "ranking": {
                "experiments": [
                    {
                        "name": "no-pack-of-its-own",
                        "unit": "user",
                        "slice": [0, 0.6],
                        "arms": {"own": {"weight": 2}, "general": {"weight": 1, "fallback": "general"}},
                    },
                    {
                        "name": "look-first",
                        "unit": "user",
                        "slice": [0.6, 1],
                        "arms": {
                            "own": {"weight": 1},
                            "general": {"weight": 1, "fallback": "general", "shadow": True},
                        },
                    },
                ]
            }
        },
    }
)
"""A document with an arm that answers and one that is scored besides."""


class Visitors:
    """Asks a service, looks at the first items of an answer, and clicks as often as the answer says."""

    def __init__(self, url: str, bundle: Bundle, seed: int = 0) -> None:
        """Visitors of a service.

        Args:
            url: its.
            bundle: that it serves.
            seed: of everything that is drawn.
        """
        self._url = url
        self._traffic = Traffic.of(bundle, Mix(candidates={20: 0.4, 100: 0.4, 300: 0.2}, units=True), seed)
        fields = [slot.field for slot in bundle.schema.scope("request")]
        self._texts = [
            (each.owner, each.name) for each in fields if each.dtype == "str" and each.multiple is None
        ]
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._events: list[dict[str, Any]] = []
        self.exaggerates: dict[str, float] = {}
        """By version of a pack, what it adds to the logit and users know nothing of; by default nothing."""

    def visit(
        self, seconds: float, rate: Callable[[float], float], strange: Callable[[float], float]
    ) -> None:
        """Send requests for a while, each on the connection of the last with a chance of a new one.

        Args:
            seconds: for how long.
            rate: requests a second, at a moment since the beginning.
            strange: share of users with a value that nobody has seen, likewise.
        """
        began = due = time.perf_counter()
        client = httpx2.Client(base_url=self._url)
        try:
            while (now := time.perf_counter() - began) < seconds:
                if self._chance.random() < 0.02:  # so that all workers have some
                    client.close()
                    client = httpx2.Client(base_url=self._url)
                self._one(client, strange(now))
                due += self._chance.expovariate(rate(now))
                time.sleep(max(0.0, due - time.perf_counter()))
            self._tell(client)
        finally:
            client.close()

    def _one(self, client: httpx2.Client, strange: float) -> None:
        asked = self._traffic.ask()
        kind = self._chance.random()
        if self._chance.random() < strange:
            asked = self._estranged(asked)
        if kind < 0.01:
            asked = replace(asked, domain="nobody-serves-this")
        content = {"content-type": "application/json"}
        headers = content | _HASTY if kind > 0.98 else content
        body = b"{}" if 0.01 < kind < 0.015 else asked.body
        answer = client.post(asked.path, content=body, headers=headers)
        if answer.status_code == httpx2.codes.OK:
            self._look(asked, answer.json())
        if len(self._events) >= 2 * _TOLD * _SHOWN:
            self._tell(client)

    def _estranged(self, asked: Asked) -> Asked:
        """The same request with values that no training has seen, and an item that is in no table."""
        user, context = dict(asked.user), dict(asked.context)
        for owner, name in self._texts:
            (user if owner == "user" else context)[name] = _STRANGER
        stranger = _STRANGER if isinstance(asked.ids[0], str) else _STRANGE_ID
        return replace(asked, user=user, context=context, ids=(stranger, *asked.ids[1:]))

    def _look(self, asked: Asked, answer: dict[str, Any]) -> None:
        scored = sorted(zip(answer["probabilities"], answer["ids"], strict=True), reverse=True)
        for probability, item in scored[:_SHOWN]:
            event = {
                "user": asked.user["id"],
                "domain": asked.domain,
                "item": item,
                "request_id": answer["request_id"],
                "probability": probability,
            }
            self._events.append({**event, "kind": "shown"})
            if self._chance.random() < _lowered(probability, self.exaggerates.get(answer["pack"], 0.0)):
                self._events.append({**event, "kind": "click"})

    def _tell(self, client: httpx2.Client) -> None:
        if self._events:
            client.post("/v1/events", json={"events": self._events}).raise_for_status()
            self._events = []


def _lowered(probability: float, by: float) -> float:
    """A probability whose logit is lower."""
    odds = probability / max(1 - probability, 1e-9) * math.exp(-by)
    return odds / (1 + odds)

"""`Shoppers`: the users of the simulator, who ask a service over HTTP and click as they truly would.

A simulated day is one request of every user, and then the clicks of what was answered; they are sent as fast
as they are answered.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.sender import Plan, Sending, request
from loadtest.traffic import JSON
from service.contract.errors import MdctrError
from training.data.sources.synthetic import DEVICES, Synthetic

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_CONNECTIONS = 16
_TOGETHER = 1000
"""Clicks of one request, as many as the service takes."""
_PATIENCE = 600.0
"""Seconds that a day may take."""


class ShoppersError(MdctrError):
    """A request was not answered as it should be."""


@dataclass(frozen=True)
class Visits:
    """One request each of Q users, with C candidates."""

    user: Ints
    """(Q,) rows of the simulator's users."""
    item: Ints
    """(Q, C) rows of its items; none stands twice in a request."""
    hour: Ints
    """(Q,)"""
    device: Ints
    """(Q,)"""
    probability: Floats
    """(Q, C) that the user clicks the item, were it shown."""


@dataclass(frozen=True)
class Told:
    """What came of a day."""

    requests: int
    shown: int
    clicks: int
    arms: dict[str | None, int]
    """Requests by arm; None for those in no experiment."""
    packs: dict[str, int]
    """Requests by the version that answered."""


class _Answer(msgspec.Struct):
    request_id: str
    pack: str
    arm: str | None
    ids: list[str]


class Shoppers:
    """All users of a simulator, in one domain."""

    def __init__(self, source: Synthetic, domain: str, candidates: int, shown: int) -> None:
        """Nothing is sent yet.

        Args:
            source: who they are, and what they click.
            domain: what they ask for.
            candidates: of a request.
            shown: items of an answer.
        """
        self._source, self.domain, self._candidates, self.shown = source, domain, candidates, shown
        names = source.users.columns
        rows = source.users.rows()
        self.ids: list[str] = [row[names.index("user.id")] for row in rows]
        fields = [name.removeprefix("user.") for name in names]
        self._profiles = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
        self.items: list[str] = source.items()["item.id"].to_list()
        self._quoted = [json.dumps(item) for item in self.items]

    def __len__(self) -> int:
        return len(self.ids)

    def visits(self, random: np.random.Generator, users: Ints) -> Visits:
        """A request of each of these users: when, on what, and for which items."""
        count = len(users)
        hour, device = random.integers(0, 24, count), random.integers(0, len(DEVICES), count)
        # The items of a request are neighbours in an order of all, so that none stands twice in it.
        order, start = random.permutation(len(self.items)), random.integers(0, len(self.items), count)
        item = order[(start[:, None] + np.arange(self._candidates)) % len(self.items)]
        probability = self._source.probability(
            self.domain, users[:, None], item, hour[:, None], device[:, None]
        )
        return Visits(users, item, hour, device, probability)

    def day(self, random: np.random.Generator, port: int) -> Told:
        """Every user asks once, in an order of chance, and clicks.

        Args:
            random: where chance comes from.
            port: of the service, on this machine.

        Raises:
            ShoppersError: an answer is no 200, or a click was not taken.
        """
        seen = self.visits(random, random.permutation(len(self)))
        read = msgspec.json.Decoder(_Answer).decode
        answers = [read(body) for body in _sent(port, self._requests(seen), 200)]
        truth = [
            dict(zip(item, row, strict=True))
            for item, row in zip(seen.item.tolist(), seen.probability.tolist(), strict=True)
        ]
        place = {name: at for at, name in enumerate(self.items)}
        lots = random.random((len(answers), self.shown)).tolist()
        clicks = [
            {
                "user": self.ids[user],
                "domain": self.domain,
                "item": item,
                "kind": "click",
                "request_id": answer.request_id,
            }
            for user, answer, likely, lot in zip(seen.user.tolist(), answers, truth, lots, strict=True)
            for item, draw in zip(answer.ids, lot, strict=True)
            if draw < likely[place[item]]
        ]
        parts = [clicks[at : at + _TOGETHER] for at in range(0, len(clicks), _TOGETHER)]
        bodies = [msgspec.json.encode({"events": part}) for part in parts]
        _sent(port, [request("POST", "/v1/events", body, JSON) for body in bodies], 202)
        arms = dict(Counter(answer.arm for answer in answers))
        packs = dict(Counter(answer.pack for answer in answers))
        shown = sum(len(answer.ids) for answer in answers)
        return Told(len(answers), shown, len(clicks), arms, packs)

    def _requests(self, seen: Visits) -> list[bytes]:
        path = f"/v1/domains/{self.domain}/rank"
        rows: Any = zip(
            seen.user.tolist(), seen.item.tolist(), seen.hour.tolist(), seen.device.tolist(), strict=True
        )
        return [
            request(
                "POST",
                path,
                f'{{"user":{self._profiles[user]},"context":{{"hour":{hour},"device":"{DEVICES[device]}"}},'
                f'"ids":[{",".join(self._quoted[each] for each in item)}],"top_k":{self.shown}}}'.encode(),
                JSON,
            )
            for user, item, hour, device in rows
        ]


def _sent(port: int, requests: Sequence[bytes], status: int) -> list[bytes]:
    """Send as fast as it is answered, from a process of its own; the answers, in order.

    Raises:
        ShoppersError: one of them has another status.
    """
    plan = Plan(
        port,
        _CONNECTIONS,
        requests,
        due=np.zeros(len(requests)),
        which=np.arange(len(requests)),
        keep=True,
        identify=False,
        grace=_PATIENCE,
    )
    with tempfile.TemporaryDirectory(prefix="mdctr-shoppers-") as folder:
        sending = Sending(plan, Path(folder))
        try:
            record = sending.wait()
        finally:
            sending.stop()
    for at in np.flatnonzero(record.status != status)[:1].tolist():
        raise ShoppersError(
            f"{status} was expected, and not {record.statuses()}: {record.answers[at][:300]!r}"
        )
    return record.answers

"""`Shadows`: scores requests under arms that answer nothing, after they were answered, with time to spare.

What shadows may take of this process is a share of the time that goes by; what is more is dropped, and
counted. A request's row waits for its shadow on the way to the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from service.contract.errors import RequestError
from service.contract.field import Column
from service.experiments.arms import Arms
from service.experiments.document import Arm
from service.features import Ids
from service.stores._protocol import Domain
from service.telemetry import Metrics

_WAITING = 64
"""Requests that may wait for their shadow."""
_SAVED = 0.1
"""Seconds of scoring that time to spare adds up to, at most."""
_PATIENCE = 1.0
"""Seconds that a pack, or an engine, may take to come."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Shadowed:
    """A request that was answered, and what it is to be scored under besides."""

    change: Arm
    domain: Domain
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    ids: Ids
    """That were asked for."""
    items: Mapping[str, Column]
    answered: Ids
    """(B,) in the order of the answer."""
    probabilities: npt.NDArray[np.float64]
    """(B,) of the answer."""
    done: Callable[[str | None, npt.NDArray[np.float64] | None], None]
    """Called with the shadow's pack and its probabilities (B,), or with nothing where it was not scored."""


class Shadows:
    """A queue, and whoever works it off. It belongs to one event loop."""

    def __init__(self, arms: Arms, metrics: Metrics, share: float) -> None:
        """Nothing waits yet.

        Args:
            arms: what scores under a change.
            metrics: where shadows are counted.
            share: of this process's time that scoring may take.
        """
        self._arms, self._metrics, self._share = arms, metrics, share
        self._queue: asyncio.Queue[Shadowed] = asyncio.Queue(_WAITING)
        self._spare, self._since = 0.0, perf_counter()

    def take(self, request: Shadowed) -> None:
        """Score a request some time soon, or drop it where too many wait."""
        try:
            self._queue.put_nowait(request)
        except asyncio.QueueFull:
            self._metrics.shadows.labels("dropped").inc()
            request.done(None, None)

    async def follow(self) -> None:
        """Score what waits, until cancelled."""
        while True:
            request = await self._queue.get()
            self._earn()
            if self._spare <= 0:
                # To let others wait for it would only make them old.
                self._metrics.shadows.labels("dropped").inc()
                request.done(None, None)
                continue
            began = perf_counter()
            try:
                pack, probabilities = await self._score(request)
                self._metrics.shadows.labels("scored").inc()
                off = np.abs(probabilities - request.probabilities)
                self._metrics.shadow_difference.observe(float(off.mean()) if len(off) else 0.0)
                request.done(pack, probabilities)
            except Exception as error:  # noqa: BLE001 - nobody waits for a shadow
                self._metrics.shadows.labels("failed").inc()
                if not isinstance(error, RequestError):
                    log.warning("a shadow failed", reason=f"{type(error).__name__}: {error}")
                request.done(None, None)
            finally:
                self._spare -= perf_counter() - began
            await asyncio.sleep(0)  # answers come first

    def close(self) -> None:
        """Let go of what waits, unscored."""
        while not self._queue.empty():
            self._queue.get_nowait().done(None, None)

    def _earn(self) -> None:
        now = perf_counter()
        self._spare = min(self._spare + self._share * (now - self._since), _SAVED)
        self._since = now

    async def _score(self, request: Shadowed) -> tuple[str, npt.NDArray[np.float64]]:
        pack, model = await self._arms.route(request.change, request.domain, _PATIENCE)
        found = await model.scorer.ranked(
            pack, request.user, request.context, request.ids, request.items, seconds=_PATIENCE
        )
        return found.pack, _of(found.ids, found.probabilities, request.answered)


def _of(ids: Ids, probabilities: npt.NDArray[np.float64], answered: Ids) -> npt.NDArray[np.float64]:
    """The probabilities of those that were answered; of an item that stands twice, the first."""
    if len(answered) == len(ids) and _listed(answered) == _listed(ids):
        return probabilities
    first: dict[Any, int] = {}
    for at, each in enumerate(_listed(ids)):
        first.setdefault(each, at)
    return probabilities[[first[each] for each in _listed(answered)]]


def _listed(ids: Ids) -> Sequence[Any]:
    return ids.tolist() if isinstance(ids, np.ndarray) else ids

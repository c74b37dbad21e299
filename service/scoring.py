"""`Scorer`: the use case, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract.errors import DeadlineExceeded, InvalidRequest, Place
from service.contract.field import Column
from service.engines._protocol import Engine, Together
from service.features import Encoded, Ids, RequestEncoder
from service.resident import Resident, sigmoid
from service.stores._protocol import Version


@dataclass(frozen=True)
class Ranking:
    """The answer to one request."""

    pack: Version
    pack_domain: str
    """Whose pack answered: the domain's own, or the general one."""
    items: Version | None
    """The item table that answered; None for the bundle's own."""
    ids: Ids
    probabilities: npt.NDArray[np.float64]
    """(B,), in the order of `ids`."""
    values: Mapping[str, int]
    """By field, how many values were looked up."""
    unknown: Mapping[str, int]
    """By field, how many of those the model has never seen."""
    started: float
    """When its features began, by `time.perf_counter`; the engine follows them."""
    features_seconds: float
    engine_seconds: float
    numbers: npt.NDArray[np.int64] | None
    """`ids` as an array, where they can be one."""


class Scorer:
    """Ranks the candidates of one request under its domain's pack."""

    def __init__(self, encoder: RequestEncoder, engine: Engine) -> None:
        self._encoder, self._engine = encoder, engine
        self._together = engine if isinstance(engine, Together) else None

    @property
    def waits(self) -> bool:
        """Whether requests are scored together: then `ranked` is to be awaited, and `rank` keeps the loop."""
        return self._together is not None

    def rank(
        self,
        pack: Resident,
        user: Mapping[str, Any],
        context: Mapping[str, Any],
        ids: Ids,
        items: Mapping[str, Column],
        *,
        top_k: int | None = None,
    ) -> Ranking:
        """Score candidates, in their order; with `top_k` the best so many, best first.

        It runs on the event loop: a request takes a fraction of a millisecond, and a thread would add its
        hand-over to that and then compete with the loop for the interpreter.

        Args:
            pack: what scores, from `Router` in the same turn of the loop.
            user: the user's fields.
            context: the request's own.
            ids: of the candidates.
            items: columns of the candidates' fields.
            top_k: answer only the best.

        Raises:
            InvalidRequest: a value does not fit its field.
        """
        with pack:
            started = perf_counter()
            encoded = self._encoder.encode(user, context, ids, items)
            encoded_at = perf_counter()
            logit = self._engine.score(encoded.inputs, pack.handle)
            scored = perf_counter()
        return _ranking(pack, encoded, logit, (ids, top_k), (started, encoded_at, scored))

    async def ranked(
        self,
        pack: Resident,
        user: Mapping[str, Any],
        context: Mapping[str, Any],
        ids: Ids,
        items: Mapping[str, Column],
        *,
        top_k: int | None = None,
        seconds: float | None = None,
    ) -> Ranking:
        """As `rank`, with an engine that scores requests together.

        Args:
            pack: likewise.
            user: likewise.
            context: likewise.
            ids: likewise.
            items: likewise.
            top_k: likewise.
            seconds: to wait at most.

        Raises:
            InvalidRequest: a value does not fit its field.
            DeadlineExceeded: the engine did not answer in time.
        """
        if self._together is None:
            return self.rank(pack, user, context, ids, items, top_k=top_k)
        with pack:
            started = perf_counter()
            encoded = self._encoder.encode(user, context, ids, items)
            encoded_at = perf_counter()
            try:
                async with asyncio.timeout(seconds):
                    logit = await self._together.submit(encoded.inputs, pack.handle)
            except TimeoutError:
                raise DeadlineExceeded("the engine did not answer in time") from None
            scored = perf_counter()
        return _ranking(pack, encoded, logit, (ids, top_k), (started, encoded_at, scored))


def _ranking(
    pack: Resident,
    encoded: Encoded,
    logit: npt.NDArray[np.float32],
    asked: tuple[Ids, int | None],
    moments: tuple[float, float, float],
) -> Ranking:
    if not np.isfinite(logit).all():
        # The pack scored its golden rows, so it is the request: numbers far from all that was trained on.
        raise InvalidRequest([Place("", "the numbers are so large that the model gives no finite score")])
    ids, top_k = asked
    numbers = encoded.numbers
    probabilities = sigmoid(pack.scale * logit.astype(np.float64) + pack.shift)
    if top_k is not None:
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        probabilities = probabilities[best]
        ids = ids[best] if isinstance(ids, np.ndarray) else [ids[at] for at in best.tolist()]
        numbers = None if numbers is None else numbers[best]
    started, encoded_at, scored = moments
    return Ranking(
        pack.version,
        pack.domain,
        encoded.items,
        ids,
        probabilities,
        encoded.values,
        encoded.unknown,
        started,
        encoded_at - started,
        scored - encoded_at,
        numbers,
    )

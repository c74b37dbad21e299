"""`Live`: the document of experiments that a service follows, and the last one that was good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from service.contract import hashing
from service.contract.errors import MdctrError, StoreError
from service.experiments.document import Experiments, parse
from service.experiments.place import Place
from service.loading import Refusal
from service.telemetry import Metrics

log = structlog.get_logger()


class Live:
    """Looks for another document again and again. It belongs to one event loop.

    A document that is wrong, or that names what cannot be served, is refused, and the one before stays. So it
    does while the place does not answer.
    """

    def __init__(
        self,
        place: Place,
        prepare: Callable[[Experiments | None], Awaitable[None]],
        metrics: Metrics,
        seconds: float,
    ) -> None:
        """No document yet.

        Args:
            place: where it is.
            prepare: makes everything ready that a document names, and takes it into use; raises what it is
                refused for, and then changes nothing.
            metrics: where refusals are counted.
            seconds: between two looks.
        """
        self._place, self._prepare, self._metrics, self._seconds = place, prepare, metrics, seconds
        self.version: str | None = None
        """Of the document that is followed: the hash of its text."""
        self.since: float | None = None
        """When it was taken over, in seconds since 1970."""
        self.refused: Refusal | None = None
        """What is there and is not followed."""

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Take over what is there."""
        try:
            found = await self._place.read()
        except StoreError as error:
            log.warning("the document of experiments cannot be read", reason=str(error))
            return
        version = None if found is None else hashing.content(found.text)
        if version == self.version:
            self.refused = None
            return
        if self.refused is not None and (self.refused.version, self.refused.final) == (version, True):
            return
        final = True
        try:
            document = None if found is None else parse(found.text, canary=True)
            final = False  # what it names may be there later
            await self._prepare(document)
        except MdctrError as error:
            self._refuse(Refusal(version or "", str(error), final))
            return
        self.version, self.refused = version, None
        self.since = time.time() if version else None
        self._metrics.experiments_since.set(self.since or 0)
        log.info("experiments", document=version)

    async def close(self) -> None:
        """Release the place."""
        await self._place.close()

    def _refuse(self, refusal: Refusal) -> None:
        if refusal != self.refused:
            self._metrics.experiments_refused.inc()
            log.error("experiments refused", document=refusal.version, reason=refusal.reason)
        self.refused = refusal

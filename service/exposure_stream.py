"""`ExposureStream`: the exposure log on a Redis stream, for who wants it while it happens.

Each entry of `mdctr:exposures` is what a worker logged in a second: its one field, `arrow`, is an Arrow IPC
stream with the columns of `service.contract.exposure`. The files are the log; what does not arrive here is
counted and not sent again.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress

import structlog

from service.contract.errors import StoreError
from service.stores._redis_connection import Connection
from service.stores._redis_url import parse
from service.telemetry import Metrics

KEY = "mdctr:exposures"
_MOST = 4
"""Entries that may be under way; with a Redis that hangs, what is more is dropped."""

log = structlog.get_logger()


class ExposureStream:
    """Sends entries over an event loop, from any thread."""

    def __init__(self, url: str, entries: int, metrics: Metrics) -> None:
        """A stream; nothing is connected yet. It belongs to the running loop.

        Args:
            url: `redis://...` in all forms that a store of packs may have.
            entries: about how many are kept.
            metrics: where what is dropped is counted.

        Raises:
            UnknownOption: the URL names no Redis.
        """
        self._redis, self._entries, self._metrics = Connection(parse(url)), entries, metrics
        self._loop = asyncio.get_running_loop()
        self._under_way: set[Future[None]] = set()

    def __call__(self, data: bytes) -> None:
        """Send an entry some time soon."""
        self._under_way = {each for each in self._under_way if not each.done()}
        if len(self._under_way) >= _MOST:
            self._metrics.exposures_dropped.labels("stream").inc()
            return
        self._under_way.add(asyncio.run_coroutine_threadsafe(self._send(data), self._loop))

    async def close(self) -> None:
        """Wait for what is under way, and release the connections."""
        for each in self._under_way:
            with suppress(asyncio.CancelledError):
                await asyncio.wrap_future(each)
        await self._redis.aclose()

    async def _send(self, data: bytes) -> None:
        try:
            async with self._redis.primary() as redis:
                await redis.xadd(KEY, {"arrow": data}, maxlen=self._entries, approximate=True)
        except StoreError as error:
            self._metrics.exposures_dropped.labels("stream").inc()
            log.warning("exposures are not sent", reason=str(error))

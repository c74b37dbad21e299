"""Packs in Redis.

For a bundle B, with the braces as they stand (they put all keys of a bundle into one slot of a Redis
Cluster, where the transactions below are legal):

* `mdctr:{B}:pack:<domain>:<version>`  string: the pack's bytes; written once, never changed
* `mdctr:{B}:live`                     hash: domain -> version
* `mdctr:{B}:changes`                  stream: one entry a promotion, with `versions` (a JSON object,
                                       domain -> version) and `time` (seconds since 1970); trimmed
* `mdctr:{B}:history:<domain>`         list: one JSON object a promotion, `version` and `time`, oldest first

A promotion is one MULTI of HSET live, XADD changes and RPUSH history. A reader takes the stream's last id
and the whole of `live` in one MULTI, then reads the stream from that id on.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.contract.errors import StoreError, UnknownOption, UnknownVersion
from service.contract.pack import GENERAL, valid_domain, version
from service.stores._protocol import Domain, Version

_TIMEOUT = 2.0
"""Seconds that one command may take."""
_KEPT_CHANGES = 1000
"""Entries of the stream that are kept; a reader further behind starts over from `live`."""


def open(url: str, bundle: str) -> RedisStore:  # noqa: A001 - every option's entry is called so
    """A store at `redis://...` or `rediss://...`; it connects when first asked.

    Raises:
        UnknownOption: redis-py does not understand the URL.
    """
    try:
        return RedisStore(url, bundle)
    except ValueError:
        # Not its text: where a password holds a `/`, it takes a part of it for the port, and says which.
        raise UnknownOption("not the URL of a Redis: redis://[USER:PASSWORD@]HOST:PORT/DB") from None


class RedisStore:
    """Packs of one bundle in Redis."""

    def __init__(self, url: str, bundle: str) -> None:
        self._url = url
        self._prefix = f"mdctr:{{{bundle}}}"
        self._redis = self._connect(_TIMEOUT)

    def _connect(self, timeout: float | None) -> Redis:
        # No retries inside the client: who calls the store knows how long it can wait.
        return Redis.from_url(
            self._url,
            socket_timeout=timeout,
            socket_connect_timeout=_TIMEOUT,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )

    async def live(self) -> Mapping[Domain, Version]:
        """The live version of every domain."""
        with _as_store_error():
            return _text(await _reply(self._redis.hgetall(f"{self._prefix}:live")))

    async def fetch(self, domain: Domain, version: Version) -> bytes:
        """A pack's bytes, as put.

        Raises:
            UnknownVersion: Redis does not have it.
        """
        with _as_store_error():
            data: bytes | None = await _reply(self._redis.get(self._pack(domain, version)))
        if data is None:
            raise UnknownVersion(f"Redis has no version {version} of {domain}")
        return data

    async def put(self, domain: Domain, data: bytes) -> Version:
        """Keep a pack and return its version."""
        if domain != GENERAL and not valid_domain(domain):
            raise StoreError(f"{domain!r} is not a domain's name")
        put = version(data)
        with _as_store_error():
            await self._redis.set(self._pack(domain, put), data, nx=True)
        return put

    async def promote(self, versions: Mapping[Domain, Version]) -> None:
        """Make these versions live in one step.

        Raises:
            UnknownVersion: one of them was never put; nothing is promoted.
        """
        if not versions:
            return
        now = time.time()
        pointers: dict[Any, Any] = dict(versions)  # redis-py's own type of keys is invariant
        with _as_store_error():
            async with self._redis.pipeline(transaction=False) as reads:
                for pair in versions.items():
                    reads.exists(self._pack(*pair))
                there = await reads.execute()
            # Packs are never changed or taken away under a reader, so what is there now stays there.
            for (domain, promoted), exists in zip(versions.items(), there, strict=True):
                if not exists:
                    raise UnknownVersion(f"Redis has no version {promoted} of {domain}")
            async with self._redis.pipeline(transaction=True) as step:
                step.hset(
                    f"{self._prefix}:live",
                    mapping=pointers,
                )
                step.xadd(
                    f"{self._prefix}:changes",
                    {"versions": json.dumps(dict(versions)), "time": f"{now:.3f}"},
                    maxlen=_KEPT_CHANGES,
                    approximate=True,
                )
                for domain, promoted in versions.items():
                    entry = json.dumps({"version": promoted, "time": round(now, 3)})
                    step.rpush(f"{self._prefix}:history:{domain}", entry)
                await step.execute()

    async def changes(self) -> AsyncGenerator[Mapping[Domain, Version], None]:
        """What is live now, whole, and after it every later promotion."""
        # A connection of its own, and one that may stay silent: XREAD waits for the next promotion.
        redis = self._connect(timeout=None)
        stream = f"{self._prefix}:changes"
        try:
            with _as_store_error():
                async with self._redis.pipeline(transaction=True) as step:
                    step.xrevrange(stream, count=1)
                    step.hgetall(f"{self._prefix}:live")
                    newest, live = await step.execute()
            last = newest[0][0] if newest else b"0-0"
            yield _text(live)
            while True:
                with _as_store_error():
                    # Empty where an operator unblocked the client.
                    answer = await _reply(redis.xread({stream: last}, block=0))
                for _, entries in answer or []:
                    for at, entry in entries:
                        last = at
                        yield _versions(entry)
        finally:
            await redis.aclose()

    async def close(self) -> None:
        """Release the connection."""
        await self._redis.aclose()

    def _pack(self, domain: Domain, version: Version) -> str:
        return f"{self._prefix}:pack:{domain}:{version}"


def _text(live: Mapping[bytes, bytes]) -> dict[Domain, Version]:
    return {domain.decode(errors="replace"): pack.decode(errors="replace") for domain, pack in live.items()}


def _versions(entry: Mapping[bytes, bytes]) -> dict[Domain, Version]:
    try:
        versions = json.loads(entry[b"versions"])
        return {str(domain): str(promoted) for domain, promoted in versions.items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise StoreError(f"an entry of the stream of changes is not a promotion: {error!r}") from None


async def _reply(answer: object) -> Any:  # noqa: ANN401 - redis-py types one method for every protocol
    """An answer of the asyncio client, whose types are shared with the one that does not await."""
    return await cast("Awaitable[Any]", answer)


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        # The first line only, and never the URL; redis-py's texts name host and port at most.
        lines = str(error).splitlines() or [""]
        raise StoreError(f"Redis: {type(error).__name__}: {lines[0]}") from None

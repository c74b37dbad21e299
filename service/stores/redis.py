"""Packs in Redis: one server, a primary that sentinels watch, or a cluster.

For a bundle B, with the braces as they stand (they put all keys of a bundle into one slot of a Redis
Cluster, where the scripts below are legal):

* `mdctr:{B}:pack:<domain>:<version>`  string: the pack's bytes; written once, never changed
* `mdctr:{B}:live`                     hash: domain -> version, or the empty string for a retired domain
* `mdctr:{B}:changes`                  stream: one entry a promotion, with `versions` (a JSON object,
                                       domain -> version or null) and `time` (seconds since 1970); trimmed
* `mdctr:{B}:history:<domain>`         list: one JSON object a promotion, `version`, `time`, `run` and `by`,
                                       oldest first; trimmed

A promotion is one script, which checks and writes, and so is a removal. A reader takes the stream's last id
and the whole of `live` in one script, and reads the stream from that id on.

Who reads needs the commands EVAL, EXISTS, GET, GETRANGE, HGETALL, LRANGE, XRANGE, XREAD and XREVRANGE; who
publishes or removes, besides, DEL, HGET, HSET, LTRIM, RPUSH, SCAN, SET, STRLEN and XADD. All keys begin with
`mdctr:`. `docs/redis.md` has the rest.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from service.contract.errors import Conflict, PackError, StoreError, UnknownVersion
from service.contract.pack import version
from service.stores import _names as names
from service.stores._protocol import KEPT_HISTORY, Domain, Kept, Pointers, Promotion, Version
from service.stores._redis_connection import Connection
from service.stores._redis_scripts import FOLLOW, PROMOTE, REMOVE, SIZES
from service.stores._redis_url import parse

_KEPT_CHANGES = 1000
"""Entries of the stream that are kept; a reader further behind starts over from `live`."""
_BEGINNING = b"0-0"
"""Before the stream's first entry."""
_SILENCE = 5.0
"""Seconds that Redis may wait for a promotion before it answers that there was none. An answer that does not
come then is a network that does not carry it."""
_LARGEST = 8 * 1024 * 1024
"""Bytes of a pack: Redis does nothing else while it copies one."""
_STEP = 200
"""Packs removed, or measured, in one script."""


def open(url: str, bundle: str) -> RedisStore:  # noqa: A001 - every option's entry is called so
    """A store at `redis://...`, `redis+sentinel://...` or `redis+cluster://...`; connects when first asked.

    Raises:
        UnknownOption: the URL names no Redis.
    """
    return RedisStore(Connection(parse(url)), bundle)


class RedisStore:
    """Packs of one bundle in Redis."""

    def __init__(self, connection: Connection, bundle: str) -> None:
        self._redis = connection
        self._prefix = f"mdctr:{{{bundle}}}"
        self._live = f"{self._prefix}:live"
        self._changes = f"{self._prefix}:changes"

    async def live(self) -> Pointers:
        """What is live in every domain that ever was promoted."""
        async with self._redis.primary() as redis:
            return _pointers(await _reply(redis.hgetall(self._live)))

    async def fetch(self, domain: Domain, version: Version, most: int | None = None) -> bytes:
        """A pack's bytes, as put.

        Raises:
            UnknownVersion: Redis does not have it.
            PackError: it has more than `most` bytes; they were not read.
        """
        names.check(domain, version)
        data = await self._from_replica(domain, version, most)
        if data is None:
            async with self._redis.primary() as redis:
                data = await self._read(redis, domain, version, most)
        if data is None:
            raise UnknownVersion(f"Redis has no version {version} of {domain}")
        if most is not None and len(data) > most:
            raise PackError(f"version {version} of {domain} has more than {most} bytes")
        return data

    async def put(self, domain: Domain, data: bytes) -> Version:
        """Keep a pack and return its version."""
        put = version(data)
        names.check(domain, put)
        if len(data) > _LARGEST:
            raise StoreError(
                f"a pack of {domain} has {len(data)} bytes, and Redis is given {_LARGEST} at most; "
                "use a folder store (directory:PATH) for such packs"
            )
        async with self._redis.primary() as redis:
            await redis.set(self._pack(domain, put), data, nx=True)
        return put

    async def promote(
        self, versions: Pointers, *, run: str = "", by: str = "", expected: Pointers | None = None
    ) -> None:
        """Make these versions live in one step.

        Raises:
            UnknownVersion: one of them was never put; nothing is promoted.
            Conflict: something else is live than expected; nothing is promoted.
        """
        for domain, promoted in versions.items():
            names.check(domain, promoted)
        if not versions:
            return
        now = round(time.time(), 3)
        packs = [self._pack(domain, promoted) for domain, promoted in versions.items() if promoted]
        keys = [self._live, self._changes, *map(self._history, versions), *packs]
        arguments = [str(len(versions)), str(KEPT_HISTORY), str(_KEPT_CHANGES)]
        arguments += [json.dumps(dict(versions)), f"{now:.3f}"]
        for domain, promoted in versions.items():
            entry = {"version": promoted, "time": now, "run": run, "by": by}
            arguments += [domain, promoted or "", json.dumps(entry)]
        for domain, wanted in (expected or {}).items():
            arguments += [domain, wanted or ""]
        refused = await self._run(PROMOTE, keys, arguments)
        if refused:
            why, domain, found = (part.decode(errors="replace") for part in refused)
            if why == "unknown":
                raise UnknownVersion(f"Redis has no version {found} of {domain}")
            raise Conflict(f"{found or 'nothing'} is live for {domain}; nothing was promoted")

    async def history(self, domain: Domain) -> Sequence[Promotion]:
        """The last promotions of a domain, oldest first."""
        names.check(domain)
        async with self._redis.primary() as redis:
            entries: list[bytes] = await _reply(redis.lrange(self._history(domain), -KEPT_HISTORY, -1))
        return [_promotion(entry) for entry in entries]

    async def kept(self) -> Sequence[Kept]:
        """Every pack there is, by domain and version; looks at every key in Redis, whosever it is."""
        start = self._pack("", "").removesuffix(":")
        pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", start) + "*"
        async with self._redis.primary() as redis:
            keys = {key.decode(errors="replace") async for key in redis.scan_iter(pattern, count=1000)}
        parts = (key.removeprefix(start).partition(":") for key in keys)
        pairs = sorted((domain, kept) for domain, _, kept in parts)
        found = []
        for some in _steps(pairs):
            sizes = await self._run(SIZES, [self._pack(*pair) for pair in some], [])
            found += [Kept(*pair, size) for pair, size in zip(some, sizes, strict=True) if size >= 0]
        return found

    async def remove(self, packs: Iterable[tuple[Domain, Version]], spare: int) -> Sequence[Kept]:
        """Remove packs that are neither live nor among the last `spare` versions; return those removed."""
        asked = list(packs)
        for domain, old in asked:
            names.check(domain, old)
        removed = []
        for some in _steps(asked):
            keys, arguments = [self._live], [str(spare)]
            for domain, old in some:
                keys += [self._history(domain), self._pack(domain, old)]
                arguments += [domain, old]
            for which, nbytes in await self._run(REMOVE, keys, arguments):
                domain, old = some[which - 1]
                removed.append(Kept(domain, old, nbytes))
        return removed

    async def changes(self) -> AsyncGenerator[Pointers, None]:
        """What is live now, whole, and after it every later promotion."""
        # A connection of its own: it waits for the next promotion.
        async with self._redis.follower(_SILENCE) as redis:
            last, live = await _reply(redis.eval(FOLLOW, 2, self._live, self._changes))
            yield _pointers(dict(zip(live[::2], live[1::2], strict=True)))
            while True:
                answer = await _reply(redis.xread({self._changes: last}, block=int(1000 * _SILENCE)))
                if last != _BEGINNING and not await _reply(redis.xrange(self._changes, last, last, count=1)):
                    # Trimmed, or another primary that never had it: there may be a gap.
                    raise StoreError("Redis: the stream of changes does not go on from where it was read")
                for _, entries in answer or []:
                    for at, entry in entries:
                        last = at
                        yield _versions(entry)

    async def close(self) -> None:
        """Release the connections."""
        await self._redis.aclose()

    async def _from_replica(self, domain: Domain, version: Version, most: int | None) -> bytes | None:
        """A pack's bytes from a replica; None where none has it, or answers."""
        try:
            async with self._redis.replicas() as redis:
                return await self._read(redis, domain, version, most) if redis else None
        except StoreError:
            return None

    async def _read(self, redis: Redis, domain: Domain, version: Version, most: int | None) -> bytes | None:
        """A pack's bytes, the first `most` and one more; None where there is none."""
        key = self._pack(domain, version)
        if most is None:
            whole: bytes | None = await _reply(redis.get(key))
            return whole
        start: bytes = await _reply(redis.getrange(key, 0, most))
        # Nothing is also what an empty pack begins with.
        return start if start or await _reply(redis.exists(key)) else None

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> Any:  # noqa: ANN401
        async with self._redis.primary() as redis:
            return await _reply(redis.eval(script, len(keys), *keys, *arguments))

    def _pack(self, domain: Domain, version: Version) -> str:
        return f"{self._prefix}:pack:{domain}:{version}"

    def _history(self, domain: Domain) -> str:
        return f"{self._prefix}:history:{domain}"


def _pointers(live: Mapping[bytes, bytes]) -> dict[Domain, Version | None]:
    return {
        domain.decode(errors="replace"): pack.decode(errors="replace") or None
        for domain, pack in live.items()
    }


def _versions(entry: Mapping[bytes, bytes]) -> Pointers:
    try:
        return names.pointers(json.loads(entry[b"versions"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"an entry of the stream of changes is not a promotion: {_line(error)}") from None


def _promotion(entry: bytes) -> Promotion:
    try:
        return Promotion.read(json.loads(entry))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"an entry of a history is not a promotion: {_line(error)}") from None


def _line(error: Exception) -> str:
    """What is wrong, without the text that it was found in."""
    return f"{type(error).__name__}: {error}"[:200]


def _steps(packs: Sequence[tuple[Domain, Version]]) -> list[Sequence[tuple[Domain, Version]]]:
    return [packs[start : start + _STEP] for start in range(0, len(packs), _STEP)]


async def _reply(answer: object) -> Any:  # noqa: ANN401 - redis-py types one method for every protocol
    """An answer of the asyncio client, whose types are shared with the one that does not await."""
    return await cast("Awaitable[Any]", answer)

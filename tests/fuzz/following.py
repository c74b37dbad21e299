"""A cache of packs that follows a Redis which says anything: it follows on, and what was good serves on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

from service import packs
from service.contract.bundle import Bundle
from service.contract.pack import version
from service.stores.redis import RedisStore
from tests.fuzz.mutations import spoiled
from tests.fuzz.target import Fault, Target
from tests.service import bundles
from tests.service.caching import FIRST, caching

_NEW = bundles.make_pack("films", 5)
_LIVE = {pack.domain: version(pack.to_bytes()) for pack in FIRST}
_WAIT = 5.0
"""Seconds within which a promotion serves."""


@contextmanager
def targets(bundle: Bundle) -> Iterator[list[Target]]:
    """One: what Redis answers, as JSON with bytes as Latin-1."""
    seed = {
        "live": {"books": version(_NEW.to_bytes()), "../x": "0123456789abcdef", "films": ""},
        "change": {"versions": json.dumps({"books": "0123456789abcdef", "other": None}), "time": "1"},
        "history": [json.dumps({"version": _LIVE["books"], "time": 1.5, "run": "", "by": ""})],
        "pack": bundles.make_pack("books", 3).to_bytes().decode("latin-1"),
    }

    def read(data: bytes) -> None:
        try:
            told = json.loads(data)
            told = Told(told) if isinstance(told, dict) else None
        except (ValueError, RecursionError):
            told = None
        if told is not None:
            with mock.patch.multiple(packs, _FIRST_WAIT=0.001, _LONGEST_WAIT=0.002):
                asyncio.run(_follow(told, bundle))

    yield [Target("Redis while packs serve", [json.dumps(seed).encode()], read, spoiled)]


class Told:
    """What Redis answers for a while."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.live = _texts(given.get("live"))
        self.change = _texts(given.get("change"))
        history = given.get("history")
        self.history = [_bytes(each) for each in history] if isinstance(history, list) else []
        self.pack = _bytes(given.get("pack"))


class FakeRedis:
    """As much of a client as a reader asks; what is good unless told otherwise."""

    def __init__(self) -> None:
        blobs = [(pack.domain, pack.to_bytes()) for pack in (*FIRST, _NEW)]
        self.good = {_key(domain, version(data)): data for domain, data in blobs}
        self.live = {domain.encode(): at.encode() for domain, at in _LIVE.items()}
        self.told: Told | None = None
        self.entries: asyncio.Queue[dict[bytes, bytes] | None] = asyncio.Queue()
        self.looks = 0
        """How often all that is live was asked for."""

    async def eval(self, *_: Any) -> list[Any]:
        self.looks += 1
        live = self.live if self.told is None else self.told.live
        return [b"1-1", [part for pair in live.items() for part in pair]]

    async def xread(self, *_: Any, **__: Any) -> Any:
        entry = await self.entries.get()
        if entry is None:
            raise OSError("the connection was lost")
        return [[b"changes", [(b"1-2", entry)]]]

    async def xrange(self, *_: Any, **__: Any) -> list[Any]:
        return [b"there"]

    async def hgetall(self, *_: Any) -> Any:
        return self.live if self.told is None else self.told.live

    async def lrange(self, *_: Any) -> list[bytes]:
        return [] if self.told is None else self.told.history

    async def getrange(self, key: str, start: int, end: int) -> bytes:
        return (await self.get(key))[start : end + 1]

    async def get(self, key: str) -> bytes:
        return self.good.get(key, b"" if self.told is None else self.told.pack)

    async def exists(self, *_: Any) -> int:
        return int(self.told is not None)


class FakeConnection:
    """Gives the client, and never fails by itself."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    @asynccontextmanager
    async def primary(self) -> AsyncGenerator[Any, None]:
        from service.stores._redis_connection import _as_store_error

        with _as_store_error():
            yield self._redis

    @asynccontextmanager
    async def replicas(self) -> AsyncGenerator[None, None]:
        yield None

    @asynccontextmanager
    async def follower(self, silence: float) -> AsyncGenerator[Any, None]:
        async with self.primary() as redis:
            yield redis

    async def aclose(self) -> None:
        """Nothing is open."""


async def _follow(told: Told, bundle: Bundle) -> None:
    redis = FakeRedis()
    store = RedisStore(FakeConnection(redis), bundles.BUNDLE)  # type: ignore[arg-type]
    async with caching(store, bundle) as cache:
        await cache.settled()
        redis.told = told
        looks = redis.looks
        redis.entries.put_nowait(told.change)
        redis.entries.put_nowait(None)
        await _until(lambda: redis.looks > looks, "it does not ask again")
        redis.entries.put_nowait(None)
        await _until(lambda: redis.looks > looks + 1, "it does not ask again")
        redis.told = None
        new = version(_NEW.to_bytes())
        # What others wrote beside them stays, and keeps nothing from being served.
        redis.live = {**told.live, **redis.live, b"films": new.encode()}
        redis.entries.put_nowait(None)
        await _until(
            lambda: cache.serving() | _LIVE | {"films": new} == cache.serving(), "it does not serve again"
        )
        if await cache.asks("films") != new or await cache.asks("books") != _LIVE["books"]:
            raise Fault("another pack answers")


async def _until(happened: Any, what: str) -> None:
    try:
        async with asyncio.timeout(_WAIT):
            while not happened():
                await asyncio.sleep(0.0005)
    except TimeoutError:
        raise Fault(what) from None


def _key(domain: str, at: str) -> str:
    return f"mdctr:{{{bundles.BUNDLE}}}:pack:{domain}:{at}"


def _texts(given: Any) -> dict[bytes, bytes]:
    return {_bytes(key): _bytes(value) for key, value in given.items()} if isinstance(given, dict) else {}


def _bytes(given: Any) -> bytes:
    text = given if isinstance(given, str) else json.dumps(given)
    return text.encode("latin-1", "replace")

"""Where the document of experiments lies: in a file, or in Redis. What was there before is kept beside it.

`PATH`, `file:PATH`, or `redis://...` in all forms that a store of packs may have. In Redis it is the last
entry of the list `mdctr:experiments`, and those before it are its history; beside a file that is
`PATH.history`, a line for each version. An entry is a JSON object: `time`, `by`, `why`, and `document`, its
text.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from service.contract import files
from service.contract.errors import Conflict, StoreError

_KEEP = 200
"""Versions of a document that are kept in Redis."""
_KEY = "mdctr:experiments"
_REPLACE = """
-- KEYS: the list
-- ARGV: what must be its last entry, or nothing; the new one; how many are kept
if (redis.call('LINDEX', KEYS[1], -1) or '') ~= ARGV[1] then
  return 0
end
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[1], -ARGV[3], -1)
return 1
"""


@dataclass(frozen=True)
class Found:
    """A document as it is somewhere."""

    text: bytes
    token: bytes
    """What `Place.replace` must still find there."""


class Place(Protocol):
    """Somewhere a document can be. Every method raises `StoreError` where it does not answer."""

    async def read(self) -> Found | None:
        """The document; None where there is none."""

    async def replace(self, found: Found | None, text: bytes, *, by: str, why: str) -> None:
        """Put another in its place, in one step.

        Args:
            found: what was read.
            text: the new document; it is not checked here.
            by: who.
            why: for the history.

        Raises:
            Conflict: something else is there by now; nothing was changed.
        """

    async def close(self) -> None:
        """Release what is held."""


def open_place(where: str) -> Place:
    """The place that a setting or an option names. Nothing is read yet.

    Raises:
        UnknownOption: it looks like a Redis and is none.
    """
    if where.partition(":")[0].partition("+")[0] in {"redis", "rediss"}:
        return RedisPlace(where)
    return FilePlace(Path(where.removeprefix("file:")))


class FilePlace:
    """A file of this machine, or of all that mount it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> Found | None:
        """The document; None where there is none."""
        text = await asyncio.to_thread(self._read)
        return None if text is None else Found(text, text)

    async def replace(self, found: Found | None, text: bytes, *, by: str, why: str) -> None:
        """Put another in its place, in one step."""
        await asyncio.to_thread(self._replace, None if found is None else found.token, text, by, why)

    async def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path} cannot be read: {error.strerror}") from None

    def _replace(self, before: bytes | None, text: bytes, by: str, why: str) -> None:
        history = self._path.with_name(f"{self._path.name}.history")
        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            with history.open("ab") as lines:
                fcntl.flock(lines, fcntl.LOCK_EX)
                if self._read() != before:
                    raise Conflict(f"{self._path} was changed by somebody else")
                files.write(self._path, text)
                lines.write(_entry(text, by, why) + b"\n")
                lines.flush()
                os.fsync(lines.fileno())
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written: {error.strerror}") from None


class RedisPlace:
    """The list in Redis."""

    def __init__(self, url: str) -> None:
        # Here, so that a file needs no Redis.
        from service.stores._redis_connection import Connection  # noqa: PLC0415
        from service.stores._redis_url import parse  # noqa: PLC0415

        self._redis = Connection(parse(url))

    async def read(self) -> Found | None:
        """The document; None where there is none."""
        async with self._redis.primary() as redis:
            entry = cast("bytes | None", await redis.lindex(_KEY, -1))
        if entry is None:
            return None
        try:
            return Found(json.loads(entry)["document"].encode(), entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StoreError(f"the last entry of {_KEY} is none that we wrote") from None

    async def replace(self, found: Found | None, text: bytes, *, by: str, why: str) -> None:
        """Put another in its place, in one step."""
        token = b"" if found is None else found.token
        async with self._redis.primary() as redis:
            answer = redis.eval(_REPLACE, 1, _KEY, token, _entry(text, by, why), str(_KEEP))
            done = await answer
        if not done:
            raise Conflict("the experiments in Redis were changed by somebody else")

    async def close(self) -> None:
        """Release the connections."""
        await self._redis.aclose()


def _entry(text: bytes, by: str, why: str) -> bytes:
    whole = {"time": round(time.time(), 3), "by": by, "why": why, "document": text.decode()}
    return json.dumps(whole).encode()

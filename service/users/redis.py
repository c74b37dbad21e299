"""Users in Redis: one server, a primary that sentinels watch, or a cluster.

A user is one hash, `mdctr:user:<id>`, so that one command reads all that a request needs:

* `profile`        a JSON object: values by field name, written by another program
* `recent`         clicks, a line each, by time, oldest first: `[<seconds since 1970>,"<domain>",<item>]`
* `vector:<name>`  kept free for vectors, which nothing here reads or writes yet

Who reads needs the command HMGET; who appends, besides, EVAL, EXPIRE, HGET and HSET. `docs/redis.md` has the
rest.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast

from service.contract.errors import StoreError
from service.stores._redis_connection import Connection
from service.stores._redis_url import parse
from service.users._protocol import KEPT_RECENT, Click, Damaged, User, UserId

_PREFIX = "mdctr:user:"
_STEP = 100
"""Users that are sent at once."""

_APPEND = """
-- KEYS: a user
-- ARGV: clicks that are kept, seconds until the user is forgotten or 0; for each click its time, its line
local recent, known = {}, {}
for line in string.gmatch(redis.call('HGET', KEYS[1], 'recent') or '', '[^\\n]+') do
  recent[#recent + 1] = line
  known[line] = true
end
for i = 3, #ARGV, 2 do
  local time, line = tonumber(ARGV[i]), ARGV[i + 1]
  if not known[line] then
    known[line] = true
    local at = #recent
    while at > 0 and (tonumber(string.match(recent[at], '^%[([^,]+),') or '') or 0) > time do
      at = at - 1
    end
    table.insert(recent, at + 1, line)
  end
end
local first = math.max(1, #recent - tonumber(ARGV[1]) + 1)
redis.call('HSET', KEYS[1], 'recent', table.concat(recent, '\\n', first))
if ARGV[2] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return #recent - first + 1
"""
"""Lines stay text: Lua's numbers would round a long id."""


def open(url: str, forget: int) -> RedisUsers:  # noqa: A001 - every option's entry is called so
    """Users at `redis://...`, `redis+sentinel://...` or `redis+cluster://...`; connects when first asked.

    Raises:
        UnknownOption: the URL names no Redis.
    """
    return RedisUsers(Connection(parse(url)), forget)


class RedisUsers:
    """Users in Redis."""

    def __init__(self, connection: Connection, forget: int) -> None:
        self._redis, self._forget = connection, forget

    async def read(self, user: UserId) -> User | None:
        """What is known of a user; None for nothing.

        Raises:
            Damaged: it cannot be read.
        """
        try:
            async with self._redis.primary() as redis:
                answer = redis.hmget(_PREFIX + user, ["profile", "recent"])
                profile, recent = await cast("Awaitable[list[bytes | None]]", answer)
        except StoreError as error:
            if "WRONGTYPE" in str(error):
                raise Damaged("a user's key is not a hash") from None
            raise
        if profile is None and recent is None:
            return None
        return User(_profile(profile), _recent(recent))

    async def append(self, clicks: Mapping[UserId, Sequence[Click]]) -> None:
        """Add to the recent clicks of users, each user's in one step."""
        users = list(clicks.items())
        for start in range(0, len(users), _STEP):
            async with self._redis.primary() as redis:
                # No transaction: users are apart from each other, and others are served in between.
                pipeline = redis.pipeline(transaction=False)
                for user, added in users[start : start + _STEP]:
                    lines = [part for click in added for part in (repr(float(click.time)), _line(click))]
                    pipeline.eval(_APPEND, 1, _PREFIX + user, KEPT_RECENT, self._forget, *lines)
                await pipeline.execute()

    async def close(self) -> None:
        """Release the connections."""
        await self._redis.aclose()


def _line(click: Click) -> str:
    return json.dumps([float(click.time), click.domain, click.item], separators=(",", ":"))


def _profile(text: bytes | None) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Damaged("a user's profile is not a JSON object")
    return found


def _recent(text: bytes | None) -> tuple[Click, ...]:
    try:
        lines = json.loads(b"[%s]" % b",".join((text or b"").splitlines()))
        return tuple(Click(str(domain), item, float(time)) for time, domain, item in lines)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Damaged("a user's recent clicks are not lines of [time, domain, item]") from None

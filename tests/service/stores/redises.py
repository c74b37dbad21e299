"""What tests ask of Redis past the store, and how they wait for it."""

import asyncio
import re
import time
from contextlib import aclosing
from pathlib import Path

import redis as sync_redis

from service.contract.errors import StoreError
from tests.conformance.stores import BUNDLE

PREFIX = f"mdctr:{{{BUNDLE}}}"


def nodes(cluster):
    """A client of each node, primaries first."""
    places = cluster.removeprefix("redis+cluster://").split(",")
    return [
        sync_redis.Redis.from_url(f"redis://{place}?decode_responses=true&protocol=2") for place in places
    ]


def ask_all(cluster, *command):
    for node in nodes(cluster):
        node.execute_command(*command)


async def again(call, seconds=15.0):
    """What a call answers once it does."""
    until = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except StoreError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)


async def follow(store, told):
    """Read changes as the service does: again after each error."""
    while True:
        try:
            async with aclosing(store.changes()) as changes:
                async for pointers in changes:
                    told.append(dict(pointers))
        except StoreError:
            await asyncio.sleep(0.02)


async def until(true, seconds=15.0):
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def documented(name, password):
    """The command in docs/redis.md that makes a user."""
    [line] = re.findall(rf"^(ACL SETUSER {name} .*)$", Path("docs/redis.md").read_text(), re.MULTILINE)
    return str(line).replace("PASSWORD", password).split()

"""Documents in a file and in Redis: read, replaced in one step, and their history."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from loadtest.redis_server import RedisServer
from service.contract.errors import Conflict, StoreError, UnknownOption
from service.experiments.place import open_place


@pytest.fixture(scope="module")
def server():
    with closing(RedisServer()) as started:
        started.start()
        yield started


@pytest.fixture(params=["file", "redis"])
def where(request, tmp_path, server):
    if request.param == "file":
        return f"file:{tmp_path / 'folder' / 'experiments.json'}"
    server.ask("FLUSHALL")
    return server.url


def history(where: str) -> list[dict[str, object]]:
    lines: list[Any]
    if where.startswith("file:"):
        lines = [*Path(where.removeprefix("file:") + ".history").read_bytes().splitlines()]
    else:
        with closing(redis.Redis.from_url(where)) as client:
            lines = client.lrange("mdctr:experiments", 0, -1)
    return [json.loads(line) for line in lines]


def test_a_document_is_read_as_it_was_put(where) -> None:
    async def use() -> None:
        place = open_place(where)
        assert await place.read() is None
        await place.replace(None, b'{"a": "\xc3\xa9"}', by="ann", why="first")
        found = await place.read()
        assert found is not None
        assert found.text == b'{"a": "\xc3\xa9"}'
        await place.replace(found, b"{}", by="guard", why="second")
        for old in (None, found):
            with pytest.raises(Conflict, match="by somebody else"):
                await place.replace(old, b"[]", by="bob", why="late")
        again = await place.read()
        assert again is not None
        assert again.text == b"{}"
        await place.close()

    asyncio.run(use())
    assert [(each["by"], each["why"], each["document"]) for each in history(where)] == [
        ("ann", "first", '{"a": "é"}'),
        ("guard", "second", "{}"),
    ]


def test_a_place_that_does_not_answer_says_so(tmp_path, server) -> None:
    async def ask(where: str) -> None:
        place = open_place(where)
        try:
            await place.read()
        finally:
            await place.close()

    with pytest.raises(StoreError, match=f"{tmp_path} cannot be read: Is a directory"):
        asyncio.run(ask(str(tmp_path)))
    with pytest.raises(StoreError, match="Redis"):
        asyncio.run(ask("redis://127.0.0.1:1"))
    with pytest.raises(UnknownOption):
        open_place("redis://127.0.0.1/zero")
    with closing(redis.Redis.from_url(server.url)) as client:
        client.flushall()
        client.rpush("mdctr:experiments", "not ours")
    with pytest.raises(StoreError, match="none that we wrote"):
        asyncio.run(ask(server.url))

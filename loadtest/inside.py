"""`Inside`: the same requests without HTTP, in a process on the server's core.

flat      the flat graph alone
engine    the service's engine alone, its inputs made beforehand
asgi      the service's application, called as a server would call it
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from loadtest import naive
from loadtest.cores import on
from loadtest.fleet import BenchError
from loadtest.traffic import Asked
from service.app import create_app
from service.contract.bundle import Bundle
from service.contract.pack import DomainPack
from service.engines import ort
from service.features import RequestEncoder
from service.settings import Settings
from service.telemetry import configure_logs

Scope = dict[str, Any]
_CHECKED = 16
"""Calls between two looks at the clock."""


@dataclass(frozen=True)
class Place:
    """What the process needs."""

    bundle: Path
    store: str
    flat: Path
    log: Path
    asked: Mapping[int, Sequence[Asked]]
    """By number of candidates."""


class Inside:
    """The process, asked for a measurement at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        ready = self._pipe.recv()
        if ready is not True:
            raise BenchError(f"the process without HTTP did not start: {ready}")

    def rate(self, kind: str, n: int, seconds: float) -> float:
        """Requests of n candidates a second, for so long.

        Raises:
            BenchError: they could not be answered.
        """
        self._pipe.send((kind, n, seconds))
        found = self._pipe.recv()
        if not isinstance(found, float):
            raise BenchError(f"{kind} with {n} candidates: {found}")
        return found


@contextmanager
def inside(place: Place, cores: frozenset[int]) -> Iterator[Inside]:
    """Run the process."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(place, theirs), daemon=True)
    with ExitStack() as stack:
        with on(cores):
            process.start()
        theirs.close()
        stack.callback(process.join)
        stack.callback(ours.close)
        yield Inside(ours)


def _work(place: Place, pipe: Connection) -> None:
    with place.log.open("wb") as log:
        os.dup2(log.fileno(), 2)  # before anything that logs remembers where stderr is
        try:
            uvloop.run(_serve(place, pipe))
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - told to the one who waits
            pipe.send(repr(error))


async def _serve(place: Place, pipe: Connection) -> None:
    configure_logs("json")
    bundle = Bundle.open(place.bundle)
    engine, flat = ort.open(bundle, 1), ort.session(place.flat, 1)
    domain = next(iter(place.asked.values()))[0].domain
    handle = engine.load(DomainPack.from_bytes(dict(bundle.packs())[domain], bundle.base))
    encoder = RequestEncoder(bundle, max(place.asked))
    app = create_app(Settings(bundle=place.bundle, store=place.store))
    turns: dict[tuple[str, int], Iterator[Any]] = {}
    for n, asked in place.asked.items():
        encoded = [encoder.encode(each.user, each.context, each.ids, {}).inputs for each in asked]
        turns["flat", n] = cycle([{"ids": naive.rows(bundle, each)} for each in asked])
        turns["engine", n] = cycle(encoded)
        turns["asgi", n] = cycle([(each.path, each.body) for each in asked])
    calls: dict[str, Callable[[Any], Any]] = {
        "flat": lambda given: flat.run(["logit"], given),
        "engine": lambda given: engine.score(given, handle),
    }
    async with _Application(app) as application:
        pipe.send(True)
        while True:
            kind, n, seconds = await asyncio.to_thread(pipe.recv)
            try:
                if kind == "asgi":
                    rate = await _asynchronous(application.post, turns[kind, n], seconds)
                else:
                    rate = _synchronous(calls[kind], turns[kind, n], seconds)
                pipe.send(rate)
            except Exception as error:  # noqa: BLE001 - told to the one who asked
                pipe.send(repr(error))


def _synchronous(call: Callable[[Any], Any], turn: Iterator[Any], seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        for _ in range(_CHECKED):
            call(next(turn))
        done += _CHECKED
    return done / (now - began)


async def _asynchronous(
    call: Callable[[str, bytes], Awaitable[int]], turn: Iterator[Any], seconds: float
) -> float:
    done, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        for _ in range(_CHECKED):
            status = await call(*next(turn))
            if status != 200:
                raise BenchError(f"the application answered {status}")
        done += _CHECKED
    return done / (now - began)


class _Application:
    """An ASGI application between its start and its end."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - any of them
        self._app = app
        self._state: dict[str, Any] = {}
        self._stop = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._began = False

    async def __aenter__(self) -> _Application:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self._state}
        self._life = asyncio.ensure_future(self._app(scope, self._receive, self._send))
        await self._started
        for _ in range(600):
            if await self._ask("GET", "/readyz", b"") == 200:
                return self
            await asyncio.sleep(0.1)
        raise BenchError("the application is not ready")

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._life

    async def post(self, path: str, body: bytes) -> int:
        """The status of the answer."""
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: bytes) -> int:
        status = 0
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": self._state.copy(),
        }

        async def receive() -> Scope:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Scope) -> None:
            nonlocal status
            status = message.get("status", status)

        await self._app(scope, receive, send)
        return status

    async def _receive(self) -> Scope:
        if not self._began:
            self._began = True
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Scope) -> None:
        if message["type"] == "lifespan.startup.complete":
            self._started.set_result(None)
        elif message["type"] == "lifespan.startup.failed":
            self._started.set_exception(BenchError(str(message.get("message"))))

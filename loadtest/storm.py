"""`Storm`: everything that goes wrong at once, and what the workers should serve when it is over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import RedisError
from rich.console import Console

from loadtest.fleet import BenchError, Fleet
from loadtest.material import Material
from loadtest.redis_server import RedisServer
from service.contract.errors import StoreError, UnknownVersion
from service.lifecycle import rollback
from service.stores._open import open_store

_SETTLING = 1.0
"""Seconds after an outage that still belong to it."""
_AGAIN = 0.05
"""Seconds before a store that did not answer is asked again."""
_ROLLBACKS, _SINGLE = 0.15, 0.6
"""Shares of the promotions: of rollbacks, and of those of one domain; the others are of several."""


class Storm:
    """Rounds of promotions and accidents."""

    def __init__(self, material: Material, redis: RedisServer, fleet: Fleet, *, bad_share: float) -> None:
        """A storm to come.

        Args:
            material: what is promoted.
            redis: what is killed, and started again.
            fleet: the workers, of which one is killed.
            bad_share: of the promotions, that are of a pack that must not serve.
        """
        self.promotes = self.rollbacks = self.bad = self.cuts = 0
        self.outages: list[tuple[float, float]] = []
        """Moments (`time.time()`) of the kill, and of the last answer that may be late for it."""
        self.killed, self.back_s = 0, 0.0
        """The worker, and after how many seconds there were as many again."""
        self.converge_s: list[float] = []
        """By round, seconds from its last promotion until every worker served what was live."""
        self.began = self.half = self.ended = 0.0
        """Moments."""
        self._material, self._redis, self._fleet, self._bad_share = material, redis, fleet, bad_share
        self._serving = {domain: next(iter(packs)) for domain, packs in material.good.items()}
        self._chance = random.Random(2)  # noqa: S311
        self._store = open_store(redis.url, material.bundle.manifest.bundle)

    async def rage(
        self, console: Console, *, rounds: int, promotes: int, seconds: float, outages: int, cuts: int
    ) -> None:
        """All of it.

        Args:
            console: for a line a round.
            rounds: how many.
            promotes: in each.
            seconds: of each, without the wait for the workers.
            outages: of Redis, in each.
            cuts: of every connection to Redis, in each.

        Raises:
            BenchError: a worker never serves what is live.
        """
        self.began = time.time()
        try:
            for turn in range(rounds):
                if turn == rounds // 2:
                    self.half = time.time()
                accidents = [self._outage] * outages + [self._cut] * cuts
                # Early, so that the second half, whose tail is measured, is without it.
                accidents += [self._kill] if turn == rounds // 3 else []
                self._chance.shuffle(accidents)
                await asyncio.gather(self._one_by_one(accidents, seconds), self._promote(promotes, seconds))
                self.converge_s.append(await self._fleet.converged(self._serving))
                console.print(
                    f"round {turn + 1}: {self.promotes:,} promoted, {len(self.outages)} outages, "
                    f"all workers serve what is live after {self.converge_s[-1]:.2f} s"
                )
        finally:
            self.ended = time.time()
            await self._store.close()

    async def _one_by_one(self, accidents: Sequence[Callable[[], Awaitable[None]]], seconds: float) -> None:
        began = time.monotonic()
        for at, accident in enumerate(accidents):
            await asyncio.sleep(max(0.0, began + at * seconds / len(accidents) - time.monotonic()))
            await accident()

    async def _promote(self, count: int, seconds: float) -> None:
        began = time.monotonic()
        for at in range(count):
            await asyncio.sleep(max(0.0, began + at * seconds / count - time.monotonic()))
            kind = self._chance.random()
            if kind < self._bad_share:
                await self._promote_bad()
            elif kind < self._bad_share + _ROLLBACKS:
                await self._roll_back()
            elif kind < self._bad_share + _ROLLBACKS + _SINGLE:
                await self._promote_good(1)
            else:
                await self._promote_good(self._chance.randint(2, 5))
            self.promotes += 1

    async def _promote_good(self, domains: int) -> None:
        some = self._chance.sample([*self._material.good], min(domains, len(self._material.good)))
        chosen = {domain: self._chance.choice([*self._material.good[domain]]) for domain in some}
        await _insist(lambda: self._store.promote(chosen, run="bench"))
        self._serving.update(chosen)

    async def _promote_bad(self) -> None:
        domain = self._chance.choice([*self._material.bad])
        name = self._chance.choice([*self._material.bad[domain]])
        await _insist(lambda: self._store.promote({domain: name}, run="bench, bad"))
        self.bad += 1

    async def _roll_back(self) -> None:
        domain = self._chance.choice([*self._material.good])
        before = live = (await _insist(self._store.live))[domain]
        # An answer may be lost on its way: where the pointer has moved, it was not the question.
        while live == before:
            try:
                await rollback(self._store, [domain], by="bench")
            except UnknownVersion:  # there is nothing before it
                await self._promote_good(1)
                return
            except StoreError:
                await asyncio.sleep(_AGAIN)
            live = (await _insist(self._store.live))[domain]
        # To which version, is the store's business; one that is bad leaves what serves.
        if live in self._material.good[domain]:
            self._serving[domain] = live
        self.rollbacks += 1

    async def _outage(self) -> None:
        began = time.time()
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(self._chance.uniform(0.1, 1.0))
        await asyncio.to_thread(self._redis.start)
        self.outages.append((began, time.time() + _SETTLING))

    async def _cut(self) -> None:
        """Cut every connection to Redis, ours too."""
        try:
            await asyncio.to_thread(self._redis.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        except RedisError as error:
            raise BenchError(f"connections cannot be cut: {error}") from error
        self.cuts += 1

    async def _kill(self) -> None:
        """Kill one worker, and wait until there are as many again."""
        self.killed = next(iter(await asyncio.to_thread(self._fleet.workers)))
        os.kill(self.killed, signal.SIGKILL)
        began = time.monotonic()
        await asyncio.to_thread(self._fleet.workers, self.killed)
        self.back_s = time.monotonic() - began


async def _insist(call: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what the call gives
    """Until the store answers."""
    while True:
        try:
            return await call()
        except StoreError:
            await asyncio.sleep(_AGAIN)

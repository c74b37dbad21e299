"""A store and a `PackCache` that follows it, against a plain model, over every kind of store.

The model: a domain serves the version that was live last and good; None retires it. Who starts late, or finds
a bad version live where nothing served before, looks back in the history, five versions and not beyond a
retirement. While the cache is cut off it serves what it served. Scores are numpy's, from the same weights.
"""

import asyncio
from contextlib import AsyncExitStack, aclosing
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from loadtest.redis_server import redis_cluster, redis_server
from service.contract.errors import NotReady, StoreError, UnknownDomain
from service.contract.pack import GENERAL, DomainPack, Golden, version
from service.stores._open import open_store
from tests.service import bundles
from tests.service.caching import EACH, caching, soon

NAMES = ("books", "films", "cooking", "news", GENERAL)
DOMAINS = st.sampled_from(NAMES)
SEEDS = st.integers(0, 3)
SPACES = count()


def bad(domain, seed, kind):
    """The bytes of a pack that must be refused."""
    pack = bundles.make_pack(domain, 100 + seed)
    golden, tensors, name = pack.golden, dict(pack.tensors), pack.bundle
    if kind == "golden":
        golden = Golden(golden.inputs, golden.logit + np.float32(0.5))
    elif kind == "bundle":
        name = "other-00000000"
    elif kind == "nan":
        tensors["bias"] = np.array([np.nan], np.float32)
    elif kind == "missing":
        del tensors["bias"]
    data = DomainPack(name, domain, tensors, golden).to_bytes()
    return data[:-10] if kind == "truncated" else data


class Wire:
    """A store that can be cut off, as the cache sees it."""

    def __init__(self, store):
        self._store = store
        self.down = False
        self.drops = asyncio.Event()
        self.connected = False

    def __getattr__(self, name):
        async def call(*arguments, **options):
            if self.down:
                raise StoreError("cut off")
            return await getattr(self._store, name)(*arguments, **options)

        return call

    async def changes(self):
        if self.down:
            self.drops.clear()
            raise StoreError("cut off")
        async with aclosing(self._store.changes()) as changes:
            yield await anext(changes)
            self.connected = True
            while True:
                following = asyncio.ensure_future(anext(changes))
                dropping = asyncio.ensure_future(self.drops.wait())
                try:
                    await asyncio.wait([following, dropping], return_when=asyncio.FIRST_COMPLETED)
                    if self.drops.is_set():
                        self.connected = False
                        self.drops.clear()
                        raise StoreError("the connection was lost")
                    pointers = following.result()
                finally:
                    for task in (following, dropping):
                        task.cancel()
                    await asyncio.gather(following, dropping, return_exceptions=True)
                yield pointers


def machine(url, bundle, folder):  # noqa: C901 - a class, closed over the store
    """The rules, for one store."""

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.runner = asyncio.Runner()
            self.stack = AsyncExitStack()
            self.space = f"model-{next(SPACES)}"
            self.packs = {}
            self.put: dict[str, list[str]] = {name: [] for name in NAMES}
            self.told: dict[str, list[str | None]] = {name: [] for name in NAMES}
            self.live: dict[str, str | None] = {}
            self.good: dict[str, str] = {}
            self.following = True

        def do(self, coroutine):
            return self.runner.run(asyncio.wait_for(coroutine, 30))

        @initialize(room=st.sampled_from([0, 2, 3, 100]))
        def begin(self, room):
            async def begin():
                self.store = open_store(url, self.space)
                self.wire = Wire(self.store)
                self.room = room
                await self.start()

            self.do(begin())

        async def start(self):
            self.cache = await self.stack.enter_async_context(
                caching(self.wire, bundle, shelf=folder / self.space, most_bytes=self.room * EACH)
            )
            await self.cache.settled()

        @rule(
            steps=st.dictionaries(
                DOMAINS,
                st.one_of(
                    st.tuples(st.just("good"), SEEDS),
                    st.tuples(
                        st.sampled_from(["golden", "bundle", "nan", "missing", "truncated"]),
                        st.integers(0, 1),
                    ),
                    st.tuples(st.just("back"), st.integers(0, 5)),
                    st.tuples(st.just("retire"), st.just(0)),
                ),
                min_size=1,
                max_size=3,
            )
        )
        def promote(self, steps):
            async def promote():
                versions: dict[str, str | None] = {}
                for domain, (kind, number) in steps.items():
                    if kind == "retire":
                        versions[domain] = None
                    elif kind == "back":
                        if not self.put[domain]:
                            continue
                        versions[domain] = self.put[domain][-1 - number % len(self.put[domain])]
                    else:
                        versions[domain] = await self.keep(domain, kind, number)
                await self.store.promote(versions)
                for domain, promoted in versions.items():
                    self.live[domain] = promoted
                    self.told[domain].append(promoted)
                await self.caught_up()

            self.do(promote())

        async def keep(self, domain, kind, seed):
            if kind == "good":
                pack = bundles.make_pack(domain, seed)
                data = pack.to_bytes()
                self.packs[version(data)] = pack
            else:
                data = bad(domain, seed, kind)
            put = await self.store.put(domain, data)
            if put not in self.put[domain]:
                self.put[domain].append(put)
            return put

        @rule(domain=DOMAINS, seed=st.integers(10, 12))
        def put_only(self, domain, seed):
            async def put_only():
                data = bundles.make_pack(domain, seed).to_bytes()
                await self.store.put(domain, data)

            self.do(put_only())

        async def caught_up(self):
            if not self.following:
                return
            for domain, promoted in self.live.items():
                if promoted is None:
                    self.good.pop(domain, None)
                elif promoted in self.packs:
                    self.good[domain] = promoted
                elif domain not in self.good and (before := self.before(domain)):
                    self.good[domain] = before
            cache = self.cache.packs
            live = {domain: promoted for domain, promoted in self.live.items() if promoted is not None}

            def taken(domain, promoted):
                refused = cache.refused.get(domain)
                left = domain not in cache.good and refused is None and self.room < len(NAMES)
                refused_it = refused is not None and refused.version == promoted
                return cache.good.get(domain) == promoted or refused_it or left

            await soon(
                lambda: cache.live == live and not cache._coming and all(map(taken, live, live.values()))
            )
            await self.cache.idle()
            # A look back comes after the refusal.
            await soon(
                lambda: (
                    all(cache.good.get(domain, want) == want for domain, want in self.good.items())
                    and (self.room < len(NAMES) or cache.good == self.good)
                )
            )

        def before(self, domain):
            steps = self.told[domain]
            since = len(steps) - steps[::-1].index(None) if None in steps else 0
            earlier = [v for v in dict.fromkeys(reversed(steps[since:])) if v != self.live[domain]]
            return next((v for v in earlier[:5] if v in self.packs), None)

        @rule()
        def drop_the_connection(self):
            if self.following:
                self.wire.drops.set()

        @precondition(lambda self: self.following)
        @rule()
        def cut(self):
            self.wire.down, self.following = True, False
            self.wire.drops.set()
            # Until it has noticed; what was told before was taken.
            self.do(soon(lambda: not self.wire.drops.is_set()))

        @precondition(lambda self: not self.following)
        @rule()
        def restore(self):
            async def restore():
                self.wire.down, self.following = False, True
                await self.caught_up()

            self.do(restore())

        @rule(domain=DOMAINS)
        def ask(self, domain):
            self.do(self.answer(domain))

        @rule()
        def ask_all(self):
            async def ask_all():
                await asyncio.gather(*map(self.answer, NAMES))

            self.do(ask_all())

        async def answer(self, domain):
            expected = self.good.get(domain)
            if expected is None or domain == GENERAL:
                with pytest.raises((NotReady, UnknownDomain)):
                    await self.cache.router.route(domain, 10)
                return
            inputs = bundles.random_inputs(3, seed=1)
            with await self.cache.router.route(domain, 10) as resident:
                assert resident.version == expected
                logit = self.cache.engine.score(inputs, resident.handle)
            scores = bundles.logits(self.packs[expected].tensors, inputs)
            np.testing.assert_allclose(logit, scores, atol=1e-5)

        @rule()
        def note(self):
            self.do(asyncio.to_thread(self.cache.packs.remember))

        @precondition(lambda self: self.following)
        @rule()
        def restart(self):
            async def restart():
                await self.close()
                self.good = {}
                await self.start()
                await self.caught_up()
                await asyncio.gather(*map(self.answer, NAMES))

            self.do(restart())

        @invariant()
        def what_is_resident_is_what_serves_and_all_that_the_engine_holds(self):
            async def look():
                cache = self.cache
                await cache.idle()
                # What is looked at again and does not fit is held meanwhile.
                await soon(lambda: cache.handles == len(cache.packs.resident))
                serving = cache.serving()
                assert serving.items() <= self.good.items()
                assert cache.packs.resident.nbytes == EACH * len(serving)
                pinned = GENERAL in serving
                assert len(serving) <= max(self.room, 1 + pinned)
                assert not pinned or self.good[GENERAL] == serving[GENERAL]

            self.do(look())

        async def close(self):
            # redis-py leaves a cluster's connection open if it is stopped while it makes it.
            await soon(lambda: self.wire.connected or not self.following)
            await self.stack.aclose()
            self.wire.connected = False

        def teardown(self):
            async def end():
                await self.close()
                await self.store.close()

            try:
                if hasattr(self, "cache"):
                    self.do(end())
            finally:
                self.runner.close()

    return Machine


@pytest.fixture(params=["directory", "redis", "redis+cluster"])
def url(request, tmp_path):
    if request.param == "directory":
        yield f"directory:{tmp_path / 'store'}"
    else:
        with redis_server() if request.param == "redis" else redis_cluster() as url:
            yield url


def test_what_serves_is_what_was_live_last_and_good(url, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("service.packs._FIRST_WAIT", 0.01)
    monkeypatch.setattr("service.packs._LONGEST_WAIT", 0.02)
    monkeypatch.setattr("service.packs._RECONCILE", 0.5)
    monkeypatch.setattr("service.stores.directory._POLL", 0.01)
    run_state_machine_as_test(
        machine(url, bundle, tmp_path),
        settings=settings(
            max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

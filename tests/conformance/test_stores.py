"""What every pack store promises, checked for every file in `service.stores`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, aclosing

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from loadtest.redis_server import redis_server
from service.contract import plugins
from service.contract.errors import StoreError, UnknownOption, UnknownVersion
from service.contract.pack import version
from service.stores._open import open_store

BUNDLE = "tiny-00000000"
OPTIONS = plugins.names("service.stores")


@pytest.fixture(scope="session")
def redis_url():
    with redis_server() as url:
        yield url


@pytest.fixture(params=OPTIONS)
def url(request, tmp_path):
    if request.param == "directory":
        return f"directory:{tmp_path}"
    url = request.getfixturevalue(f"{request.param}_url")
    with sync_redis.Redis.from_url(url) as client:
        client.flushall()
    return url


def with_store(url, use):
    """Run `use(store)` on a store opened in an event loop of its own."""

    async def run():
        store = open_store(url, BUNDLE)
        try:
            return await asyncio.wait_for(use(store), 20)
        finally:
            await store.close()

    return asyncio.run(run())


async def publish(store, **packs):
    versions = {domain: await store.put(domain, data) for domain, data in packs.items()}
    await store.promote(versions)
    return versions


def test_a_new_store_is_empty(url):
    async def use(store):
        assert await store.live() == {}
        await store.promote({})
        with pytest.raises(UnknownVersion):
            await store.fetch("books", version(b"never put"))

    with_store(url, use)


def test_put_is_idempotent_and_its_version_is_the_contents(url):
    async def use(store):
        first, again = await store.put("books", b"one"), await store.put("books", b"one")
        assert first == again == version(b"one")
        assert await store.fetch("books", first) == b"one"
        assert await store.live() == {}
        with pytest.raises(UnknownVersion):  # of another domain
            await store.fetch("films", first)

    with_store(url, use)


def test_put_never_overwrites(url, monkeypatch):
    async def use(store):
        monkeypatch.setattr(f"{type(store).__module__}.version", lambda _: "0123456789abcdef")
        await store.put("books", b"first")
        await store.put("books", b"second")
        assert await store.fetch("books", "0123456789abcdef") == b"first"

    with_store(url, use)


def test_promoting_an_unknown_version_promotes_nothing(url):
    async def use(store):
        before = await publish(store, books=b"one", films=b"one")
        new = await store.put("books", b"two")
        with pytest.raises(UnknownVersion, match="films"):
            await store.promote({"books": new, "films": version(b"never put")})
        assert await store.live() == before

    with_store(url, use)


@pytest.mark.parametrize("name", ["../escape", "a/b", "A", "", "a:b"])
def test_what_is_no_domains_name_is_refused(url, name):
    async def use(store):
        with pytest.raises(StoreError):
            await store.put(name, b"one")

    with_store(url, use)


def test_the_general_pack_is_put_like_others(url):
    async def use(store):
        assert await publish(store, _general=b"one") == await store.live()

    with_store(url, use)


def test_changes_begin_with_everything_and_go_on_with_each_promotion(url):
    async def use(store):
        start = await publish(store, books=b"1", films=b"1")
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == start
            for data in (b"2", b"3"):
                promoted = await publish(store, books=data)
                told = await anext(changes)
                assert told["books"] == promoted["books"]
                assert {**start, **told} == await store.live()

    with_store(url, use)


def test_changes_miss_nothing_across_a_reconnection(url):
    async def use(store):
        await publish(store, books=b"1", films=b"1")
        async with aclosing(store.changes()) as changes:
            await anext(changes)
        await publish(store, books=b"2")
        await publish(store, films=b"2")
        async with aclosing(store.changes()) as changes:
            assert (
                await anext(changes) == await store.live() == {"books": version(b"2"), "films": version(b"2")}
            )

    with_store(url, use)


def test_a_reader_never_goes_back(url):
    """Every version it is told is at least as new as the one before, while another promotes."""

    async def use(store):
        numbered = [await store.put("books", str(number).encode()) for number in range(40)]

        async def promote():
            other = open_store(url, BUNDLE)
            for one in numbered:
                await other.promote({"books": one})
            await other.close()

        writer = asyncio.create_task(promote())
        told: list[str] = []
        while not told or told[-1] != numbered[-1]:
            async with aclosing(store.changes()) as changes:  # reconnecting all the time
                for _ in range(2):
                    told += (await anext(changes)).values()
                    if told and told[-1] == numbered[-1]:
                        break
        await writer
        positions = [numbered.index(one) for one in told]
        assert positions == sorted(positions)

    with_store(url, use)


def test_a_promotion_is_seen_whole(url):
    async def use(store):
        rounds = [
            {domain: await store.put(domain, str(number).encode()) for domain in ("a", "b", "c")}
            for number in range(20)
        ]
        await store.promote(rounds[0])
        done = asyncio.Event()

        async def promote():
            for versions in rounds[1:]:
                await store.promote(versions)
            done.set()

        async def read():
            while not done.is_set():
                assert await store.live() in rounds
                await asyncio.sleep(0)

        await asyncio.gather(promote(), read())
        assert await store.live() == rounds[-1]

    with_store(url, use)


def test_promotions_of_two_writers_are_both_kept(url):
    async def use(store):
        versions = {f"d{number}": await store.put(f"d{number}", b"x") for number in range(30)}
        await asyncio.gather(*(store.promote({domain: one}) for domain, one in versions.items()))
        assert await store.live() == versions

    with_store(url, use)


def test_a_bundle_does_not_see_anothers_packs(url):
    async def use(store):
        await publish(store, books=b"1")
        other = open_store(url, "other-00000000")
        assert await other.live() == {}
        with pytest.raises(UnknownVersion):
            await other.fetch("books", version(b"1"))
        await other.close()

    with_store(url, use)


def test_a_thousand_domains(url):
    async def use(store):
        versions = {f"d{number}": await store.put(f"d{number}", b"x" * 64) for number in range(1000)}
        await store.promote(versions)
        async with aclosing(store.changes()) as changes:
            assert await anext(changes) == versions

    with_store(url, use)


class AgainstADictionary(RuleBasedStateMachine):
    """Any sequence of calls leaves a store as it leaves two dictionaries."""

    url: str
    domains = st.sampled_from(["books", "films", "_general"])
    contents = st.sampled_from([b"", b"one", b"two", bytes(range(256))])

    @initialize(number=st.integers(0, 2**62))
    def open(self, number):
        self.loop = asyncio.new_event_loop()
        # One bundle a run: runs share the place and must not see each other.
        self.store = open_store(self.url, f"run-{number}-{time.monotonic_ns()}")
        self.kept, self.live = {}, {}

    def ask(self, answer):
        return self.loop.run_until_complete(answer)

    @rule(domain=domains, data=contents)
    def put(self, domain, data):
        self.kept[domain, self.ask(self.store.put(domain, data))] = data

    @rule(domain=domains, data=contents)
    def fetch(self, domain, data):
        if (domain, version(data)) in self.kept:
            assert self.ask(self.store.fetch(domain, version(data))) == data
        else:
            with pytest.raises(UnknownVersion):
                self.ask(self.store.fetch(domain, version(data)))

    @rule(versions=st.dictionaries(domains, contents.map(version)))
    def promote(self, versions):
        if all(pair in self.kept for pair in versions.items()):
            self.ask(self.store.promote(versions))
            self.live.update(versions)
        else:
            with pytest.raises(UnknownVersion):
                self.ask(self.store.promote(versions))

    @invariant()
    def same_pointers(self):
        assert self.ask(self.store.live()) == self.live

    def teardown(self):
        if hasattr(self, "loop"):
            self.ask(self.store.close())
            self.loop.close()


def test_any_sequence_of_calls(url):
    machine = type("Machine", (AgainstADictionary,), {"url": url})
    quick = settings(
        max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.parametrize("url", ["", "nowhere", "s3://bucket", "directory:", "redis://host:port/0", ":x"])
def test_a_url_that_names_no_store_is_refused(url):
    with pytest.raises(UnknownOption):
        open_store(url, BUNDLE)


def test_errors_never_repeat_the_password():
    url = "redis://user:hunter2@127.0.0.1:1/0"
    for broken in (
        url,
        "hunter2",
        url.replace("hunter2", "hunter2/x"),
        url.replace(":1/", ":x/"),
        url.replace("redis:", "what:"),
    ):
        with pytest.raises((StoreError, UnknownOption)) as refused:
            with_store(broken, lambda store: store.live())
        assert "hunter2" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_redis_keys_are_those_documented(redis_url):
    """Another program reads these: names and shapes as in the module's docstring."""
    with sync_redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        versions = with_store(redis_url, lambda store: publish(store, books=b"1", films=b"1"))
        prefix = "mdctr:{tiny-00000000}"
        assert set(client.keys()) == {
            f"{prefix}:live",
            f"{prefix}:changes",
            *(f"{prefix}:pack:{domain}:{version(b'1')}" for domain in versions),
            *(f"{prefix}:history:{domain}" for domain in versions),
        }
        assert client.hgetall(f"{prefix}:live") == versions
        [(_, entry)] = client.xrange(f"{prefix}:changes")
        assert json.loads(entry["versions"]) == versions
        [history] = client.lrange(f"{prefix}:history:books", 0, -1)
        assert json.loads(history) == {"version": version(b"1"), "time": float(entry["time"])}
        assert abs(float(entry["time"]) - time.time()) < 60


def test_the_stream_of_changes_is_trimmed(redis_url):
    async def use(store):
        one = await store.put("books", b"1")
        for _ in range(1300):
            await store.promote({"books": one})

    with sync_redis.Redis.from_url(redis_url) as client:
        client.flushall()
        with_store(redis_url, use)
        assert 1000 <= client.xlen("mdctr:{tiny-00000000}:changes") < 1300


def test_a_redis_that_dies_is_a_store_error_everywhere_and_a_new_one_is_found():
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        url = server.enter_context(redis_server())
        port = int(url.rsplit(":", 1)[1].split("/")[0])

        async def use(store):
            await publish(store, books=b"1")
            changes = store.changes()
            await anext(changes)
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(server.close)
            with pytest.raises(StoreError):
                await waiting
            for call in (store.live(), store.put("books", b"2"), store.fetch("books", version(b"1"))):
                with pytest.raises(StoreError):
                    await call
            with pytest.raises(StoreError):
                await store.promote({"books": version(b"1")})
            stack.enter_context(redis_server(port))
            promoted = await publish(store, books=b"3")
            async with aclosing(store.changes()) as again:
                assert await anext(again) == promoted

        with_store(url, use)


def test_a_redis_that_stops_answering_is_a_store_error(monkeypatch):
    monkeypatch.setattr("service.stores.redis._TIMEOUT", 0.2)
    with redis_server() as url:
        with sync_redis.Redis.from_url(url) as client:
            process = client.info("server")["process_id"]

        async def use(store):
            await publish(store, books=b"1")
            os.kill(process, signal.SIGSTOP)
            try:
                with pytest.raises(StoreError):
                    await store.live()
            finally:
                os.kill(process, signal.SIGCONT)
            assert await store.live() == {"books": version(b"1")}

        with_store(url, use)


WRITER = """
import asyncio, sys
from service.stores._open import open_store
async def main():
    store = open_store(sys.argv[1], "tiny-00000000")
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        data = str(number).encode() * 20000
        await store.promote({domain: await store.put(domain, data) for domain in ("a", "b")})
asyncio.run(main())
"""


def test_a_folder_whose_writer_is_killed_holds_only_whole_things(tmp_path):
    url = f"directory:{tmp_path}"
    for delay in (0.0, 0.03, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + delay)
        writer.kill()
        writer.communicate()

        async def use(store):
            live = await store.live()
            assert live.get("a") == live.get("b")
            for domain, one in live.items():
                assert version(await store.fetch(domain, one)) == one

        with_store(url, use)
    packs = list(tmp_path.rglob("*.safetensors"))
    assert packs
    assert all(version(path.read_bytes()) == path.stem for path in packs)


def test_a_damaged_live_file_is_a_store_error(tmp_path):
    async def use(store):
        await publish(store, books=b"1")
        (tmp_path / BUNDLE / "live.json").write_text("{")
        with pytest.raises(StoreError):
            await store.live()

    with_store(f"directory:{tmp_path}", use)

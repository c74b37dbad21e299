"""What every store of users promises, checked for every file in `service.users` and every variant of one."""

import asyncio
import itertools
import json
import subprocess
import sys
import time

import pytest
import redis as sync_redis

from service.contract import plugins
from service.contract.errors import StoreError, UnknownOption
from service.users._open import open_users
from service.users._protocol import KEPT_RECENT, Click, Damaged, User

STORES = [*plugins.names("service.users"), "redis_cluster"]
REDISES = ["redis", "redis_cluster"]


@pytest.fixture(params=STORES)
def url(request, emptied):
    return "memory:" if request.param == "memory" else emptied(request.param)


in_redis = pytest.mark.parametrize("url", REDISES, indirect=True)


def with_users(url, use, forget=0):
    """Run `use(users)` on users opened in an event loop of their own."""

    async def run():
        users = open_users(url, forget)
        try:
            return await asyncio.wait_for(use(users), 30)
        finally:
            await users.close()

    return asyncio.run(run())


def ask(url, command, *arguments):
    """Send a command as another program would, by what the document says of keys."""
    if url.startswith("redis+cluster://"):
        host, port = url.removeprefix("redis+cluster://").partition(",")[0].split(":")
        with sync_redis.cluster.RedisCluster(host=host, port=int(port)) as client:
            return client.execute_command(command, *arguments)
    with sync_redis.Redis.from_url(url) as client:
        return client.execute_command(command, *arguments)


def write_profile(url, users, user, profile):
    if url == "memory:":
        users.profiles[user] = profile
    else:
        ask(url, "HSET", f"mdctr:user:{user}", "profile", json.dumps(profile))


def clicks(*times, domain="books", item=1):
    return [Click(domain, item, float(time)) for time in times]


def test_nobody_is_known_at_first(url):
    async def use(users):
        assert await users.read("42") is None
        await users.append({})
        assert await users.read("42") is None

    with_users(url, use)


def test_profiles_and_clicks_are_read_together(url):
    async def use(users):
        profile = {"age": 31, "genres": ["crime", "é"], "n": None, "x": 0.5}
        write_profile(url, users, "42", profile)
        assert await users.read("42") == User(profile, ())
        told = [Click("books", 7, 1.5), Click("films", "ä\n\\x", 2.0), Click("films", 2**63 - 1, 3.0)]
        await users.append({"42": told, "someone else": clicks(1)})
        assert await users.read("42") == User(profile, tuple(told))
        assert await users.read("someone else") == User({}, tuple(clicks(1)))

    with_users(url, use)


@pytest.mark.parametrize("user", ["a b", "{x}", "x{y}z", "}{", "ü:1", "a\nb", "x" * 256])
def test_a_user_may_have_any_name(url, user):
    async def use(users):
        await users.append({user: clicks(1)})
        assert await users.read(user) == User({}, tuple(clicks(1)))
        assert await users.read(user + "x") is None

    with_users(url, use)


def test_the_last_clicks_stay_in_the_order_of_their_times(url):
    async def use(users):
        await users.append({"1": clicks(*range(0, 100, 2))})
        assert [click.time for click in (await users.read("1")).recent] == list(range(0, 100, 2))
        # Late ones find their place, and the oldest go, whichever came last.
        await users.append({"1": clicks(71, 3, 1)})
        kept = [click.time for click in (await users.read("1")).recent]
        assert kept == sorted([*range(0, 100, 2), 71, 3, 1])[-KEPT_RECENT:]
        await users.append({"1": clicks(-1)})
        assert [click.time for click in (await users.read("1")).recent] == kept
        await users.append({"1": clicks(*range(1000, 1200))})
        assert [click.time for click in (await users.read("1")).recent] == list(range(1150, 1200))

    with_users(url, use)


def test_clicks_of_one_moment_stay_as_they_came(url):
    async def use(users):
        items = [Click("books", item, 1.0) for item in (5, 3, 9)]
        await users.append({"1": items[:2]})
        await users.append({"1": items[2:]})
        assert list((await users.read("1")).recent) == items

    with_users(url, use)


def test_what_was_told_before_is_not_told_twice(url):
    async def use(users):
        told = {"1": [*clicks(1.25, 2), *clicks(2)], "2": clicks(1767225600.123)}
        for _ in range(3):
            await users.append(told)
        assert list((await users.read("1")).recent) == clicks(1.25, 2)
        assert list((await users.read("2")).recent) == clicks(1767225600.123)
        # 7 and "7" are two items.
        await users.append({"1": [Click("books", 7, 3.0), Click("books", "7", 3.0)]})
        assert [click.item for click in (await users.read("1")).recent] == [1, 1, 7, "7"]

    with_users(url, use)


def test_many_users_in_one_call(url):
    async def use(users):
        await users.append({str(user): clicks(user) for user in range(1000)})
        for user in (0, 99, 100, 101, 999):
            assert list((await users.read(str(user))).recent) == clicks(user)

    with_users(url, use)


def test_appends_at_the_same_time_lose_nothing(url):
    async def use(users):
        times = list(range(KEPT_RECENT))
        await asyncio.gather(*(users.append({"1": clicks(time)}) for time in reversed(times)))
        assert [click.time for click in (await users.read("1")).recent] == times

    with_users(url, use)


PROCESS = """
import asyncio, sys
from service.users._open import open_users
from service.users._protocol import Click
async def run(url, start):
    users = open_users(url)
    for time in range(int(start), 50, 2):
        await users.append({"1": [Click("books", time, float(time))]})
    await users.close()
asyncio.run(run(*sys.argv[1:]))
"""


@in_redis
def test_two_processes_lose_nothing(url):
    began = [subprocess.Popen([sys.executable, "-c", PROCESS, url, str(start)]) for start in (0, 1)]
    assert [process.wait(60) for process in began] == [0, 0]

    async def use(users):
        assert [click.item for click in (await users.read("1")).recent] == list(range(50))

    with_users(url, use)


def test_who_does_not_click_is_forgotten(url):
    async def use(users):
        write_profile(url, users, "1", {"age": 1})
        await users.append({"1": clicks(1)})
        write_profile(url, users, "2", {"age": 1})
        assert await users.read("1") is not None
        until = time.monotonic() + 5
        while await users.read("1") is not None:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert await users.read("2") is not None  # whose profile's writer decides

    with_users(url, use, forget=1)


@in_redis
def test_nobody_is_forgotten_unless_told(url):
    with_users(url, lambda users: users.append({"1": clicks(1)}))
    assert ask(url, "TTL", "mdctr:user:1") == -1
    assert ask(url, "HGET", "mdctr:user:1", "recent") == b'[1.0,"books",1]'


@in_redis
@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("profile", "{"),
        ("profile", "[1]"),
        ("profile", "\udcff"),
        ("recent", "x"),
        ("recent", "[1]"),
        ("recent", '["x","books",1]'),
    ],
)
def test_a_damaged_user_is_told_apart_from_a_lost_store(url, field, text):
    ask(url, "HSET", "mdctr:user:1", field, text.encode(errors="surrogateescape"))

    async def use(users):
        with pytest.raises(Damaged):
            await users.read("1")
        await users.append({"1": clicks(1)})

    with_users(url, use)


@in_redis
def test_a_key_of_another_kind_is_damage(url):
    ask(url, "SET", "mdctr:user:1", "x")

    async def use(users):
        with pytest.raises(Damaged):
            await users.read("1")
        with pytest.raises(StoreError):
            await users.append({"1": clicks(1)})

    with_users(url, use)


@pytest.mark.parametrize("kind", ["redis", "redis+cluster"])
def test_a_store_that_is_not_there(kind):
    async def use(users):
        with pytest.raises(StoreError):
            await users.read("1")
        with pytest.raises(StoreError):
            await users.append({"1": clicks(1)})

    with_users(f"{kind}://:hunter2@127.0.0.1:1", use)


def test_random_appends_keep_what_a_plain_list_keeps(url):
    async def use(users):
        known: list[Click] = []
        for at, step in zip(itertools.count(), (37, 11, 53, 7, 29) * 8, strict=False):
            added = [Click("books", at * 10 + n, float((at * step + n * 17) % 97)) for n in range(4)]
            await users.append({"1": added})
            known = sorted([*known, *added], key=lambda click: click.time)[-KEPT_RECENT:]
            assert list((await users.read("1")).recent) == known

    with_users(url, use)


@in_redis
def test_a_read_that_was_given_up_is_nobody_elses_answer(url):
    async def use(users):
        everybody = [str(user) for user in range(20)]
        await users.append({user: clicks(at) for at, user in enumerate(everybody)})
        for wait in (0, 0.0001, 0.0003, 0.001):
            tasks = [asyncio.create_task(users.read(user)) for user in everybody]
            await asyncio.sleep(wait)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            found = await asyncio.gather(*(users.read(user) for user in everybody))
            assert [one.recent for one in found] == [tuple(clicks(at)) for at in range(20)]

    with_users(url, use)


def test_options_are_found_by_scheme():
    assert plugins.names("service.users") == ["memory", "redis"]
    with pytest.raises(UnknownOption):
        open_users("sqlite:x")

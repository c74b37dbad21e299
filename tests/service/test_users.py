"""What is kept of users, as requests see it."""

import asyncio
import json
import time
from contextlib import ExitStack, asynccontextmanager, closing

import httpx2 as httpx
import pytest

from loadtest.redis_server import RedisServer
from loadtest.server import service as served
from service.contract.errors import UnknownOption
from service.features import RequestEncoder
from service.settings import Settings
from service.telemetry import Metrics
from service.users import _profiles
from service.users._open import open_users
from service.users._profiles import Profiles
from service.users._protocol import Damaged, user_id
from tests.service.fake_users import FakeUsers
from tests.service.waiting import eventually

AGE = {"age": 51}


@pytest.fixture
def users(monkeypatch):
    found = FakeUsers()
    monkeypatch.setattr("service.runtime.open_users", lambda url, forget: found)
    return found


@pytest.fixture
def kept(start, users):
    """A service whose users are `users`, and that reads them for every request."""
    return start(users="memory:", users_cache_seconds=0)


def scores(service, **user):
    answer = service.rank(user=user, ids=[10, 11])
    assert answer.status_code == 200, answer.text
    return answer.json()["probabilities"]


def test_the_body_beats_what_is_kept_and_that_beats_nothing(kept, users):
    plain = scores(kept, id=1)
    users.profiles["1"] = {"age": 51, "genres": ["drama"]}
    both = scores(kept, id=1)
    assert both != plain
    assert both == scores_of_user_1(kept, users, age=51, genres=["drama"])
    given = scores(kept, id=1, age=20)
    assert given == scores_of_user_1(kept, users, age=20, genres=["drama"])
    assert given != both
    assert scores(kept, id=1, age=None, genres=None) == both
    # An empty list is a value.
    assert scores(kept, id=1, genres=[]) == scores_of_user_1(kept, users, age=51, genres=[])


def scores_of_user_1(service, users, **fields):
    """What the same user gets whose fields all stand in the body."""
    before = users.profiles.pop("1")
    try:
        return scores(service, id=1, **fields)
    finally:
        users.profiles["1"] = before


def test_who_is_not_named_is_not_read(kept, users):
    for user in ({}, {"age": 20}, {"id": None}):
        assert kept.rank(user=user).status_code == 200
    assert kept.rank(user={"id": [1]}).status_code == 422
    assert users.reads == []


def test_each_request_reads_once(kept, users):
    for at in range(1, 4):
        scores(kept, id=3)
        assert users.reads == ["3"] * at


def test_a_user_is_at_hand_for_a_moment(start, users, monkeypatch):
    service = start(users="memory:", users_cache_seconds=0.3)
    scores(service, id=3)
    users.profiles["3"] = AGE
    before = scores(service, id=3)
    assert users.reads == ["3"]
    time.sleep(0.35)
    assert scores(service, id=3) != before
    assert users.reads == ["3", "3"]


def test_what_a_profile_says_beyond_the_schema_does_no_harm(kept, users):
    users.profiles["1"] = {"age": 51, "shoe_size": 43, "id": 3, "genres": "not a list", "": None}
    assert scores(kept, id=1) == scores_of_user_1(kept, users, age=51)
    assert kept.metric("mdctr_user_values_refused_total", field="genres") == 1
    assert kept.metric("mdctr_user_values_refused_total", field="shoe_size") == 0


def test_a_lost_store_costs_fields_and_no_answer(kept, users, monkeypatch):
    monkeypatch.setattr(_profiles, "_PAUSE", 0.3)
    plain = scores(kept, id=1)
    users.profiles["1"] = AGE
    users.down = True
    for _ in range(5):
        assert scores(kept, id=1) == plain
    assert len(users.reads) == 2  # one before, one that found out
    assert kept.metric("mdctr_users_missed_total", reason="failed") == 1
    assert kept.metric("mdctr_users_missed_total", reason="paused") == 4
    users.down = False
    eventually(lambda: scores(kept, id=1) != plain, 3)


def test_a_store_that_hangs_is_not_waited_for(start, users, monkeypatch):
    monkeypatch.setattr(_profiles, "_PAUSE", 30)
    service = start(users="memory:", users_timeout_ms=20)
    plain = scores(service, id=1)
    users.hangs = True
    for user in (1, 2, 3):
        service.rank(user={"id": user})  # the first is at hand
    assert service.metric("mdctr_users_missed_total", reason="late") == 2
    service.rank(user={"id": "4"})
    assert service.metric("mdctr_users_missed_total", reason="late") == 3
    before = len(users.reads)
    for user in range(10, 20):
        assert service.rank(user={"id": user}).status_code == 200
    assert len(users.reads) == before
    assert service.metric("mdctr_users_missed_total", reason="paused") == 10
    # The answers come after all, and with them the store.
    users.hangs = False
    eventually(lambda: service.rank(user={"id": 30}) and users.reads[-1] == "30", 3)
    assert scores(service, id=1) == plain


def test_a_callers_deadline_is_kept_and_says_nothing_of_the_store(kept, users):
    users.hangs = True
    for user in range(5):
        began = time.perf_counter()
        answer = kept.rank(user={"id": user}, headers={"x-deadline-ms": "8"})
        assert answer.status_code == 200
        assert time.perf_counter() - began < 0.2
    assert kept.metric("mdctr_users_missed_total", reason="late") == 5
    assert kept.metric("mdctr_users_missed_total", reason="paused") == 0
    users.hangs = False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (42, "42"),
        ("42", "42"),
        ("ä", "ä"),
        ("x" * 256, "x" * 256),
        (None, None),
        (True, None),
        (4.0, None),
        ("", None),
        ("x" * 257, None),
        ("\ud800", None),
        (10**100, None),
        ([1], None),
    ],
)
def test_who_can_be_kept(given, expected):
    assert user_id(given) == expected


@asynccontextmanager
async def profiles(users, fit=lambda profile: (profile, []), keep=60.0, timeout=0.05):
    found = Profiles(users, fit, Metrics(), keep=keep, timeout=timeout)
    try:
        yield found
    finally:
        users.hangs = False
        await found.close()


def test_who_asks_together_shares_a_read():
    async def run():
        users = FakeUsers()
        users.profiles["1"] = AGE
        async with profiles(users) as found:
            users.hangs = True
            asked = [asyncio.create_task(found.merged({"id": 1}, 1)) for _ in range(5)]
            await asyncio.sleep(0.01)
            users.hangs = False
            assert await asyncio.gather(*asked) == [{"id": 1, **AGE}] * 5
            assert users.reads == ["1"]
            assert found.now({"id": "1", "age": 3}) == {"id": "1", "age": 3}

    asyncio.run(run())


def test_what_comes_too_late_is_there_for_the_next():
    async def run():
        users = FakeUsers()
        users.profiles["1"] = AGE
        async with profiles(users) as found:
            users.hangs = True
            assert await found.merged({"id": 1}, 1) == {"id": 1}
            users.hangs = False
            await asyncio.sleep(0.02)
            assert found.now({"id": 1}) == {"id": 1, **AGE}

    asyncio.run(run())


def test_a_read_does_not_go_on_for_ever(monkeypatch):
    monkeypatch.setattr(_profiles, "_GIVE_UP", 0.05)

    async def run():
        users = FakeUsers()
        async with profiles(users, timeout=10) as found:
            users.hangs = True
            assert await found.merged({"id": 1}, 10) == {"id": 1}
            assert found.now({"id": 2}) == {"id": 2}  # it counts as lost
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_no_more_users_are_at_hand_than_may_be(monkeypatch):
    monkeypatch.setattr(_profiles, "_MOST", 3)

    async def run():
        async with profiles(FakeUsers()) as found:
            for user in (1, 2, 3, 4, 5):
                await found.merged({"id": user}, 1)
            assert [found.now({"id": user}) is not None for user in (1, 2, 3, 4, 5)] == [False, False] + [
                True
            ] * 3

    asyncio.run(run())


def test_one_damaged_user_is_one_users_matter():
    class Broken(FakeUsers):
        async def read(self, user):
            if user == "1":
                raise Damaged("no")
            return await super().read(user)

    async def run():
        users = Broken()
        users.profiles["2"] = AGE
        async with profiles(users, keep=0) as found:
            assert await found.merged({"id": 1}, 1) == {"id": 1}
            assert await found.merged({"id": 2}, 1) == {"id": 2, **AGE}

    asyncio.run(run())


def test_what_is_given_is_not_changed():
    async def run():
        users = FakeUsers()
        users.profiles["1"] = AGE
        async with profiles(users) as found:
            given = {"id": 1, "age": None}
            assert await found.merged(given, 1) == {"id": 1, **AGE}
            assert given == {"id": 1, "age": None}
            assert found.now({"id": 1, "age": None}) == {"id": 1, **AGE}
            assert users.profiles["1"] == AGE

    asyncio.run(run())


def test_what_a_model_reads_of_a_profile(bundle):
    encoder = RequestEncoder(bundle, 10)
    profile = {"age": 5, "genres": ["drama", "unheard of"], "id": 2, "hour": 3, "price": 1.0}
    assert encoder.readable(profile) == ({"age": 5, "genres": ["drama", "unheard of"]}, [])
    wrong = {"age": "old", "genres": [1]}
    assert encoder.readable(wrong) == ({}, ["age", "genres"])


def test_urls_name_users_and_are_never_repeated():
    for url in ("", "redis", "memory:/more", "sqlite:hunter2", "redis://:hunter2@/x/y", ".x:", "os.path:"):
        with pytest.raises(UnknownOption) as caught:
            open_users(url)
        assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Settings(users="redis://user:hunter2@host/0"))


def test_a_whole_service_with_redis(bundle, publish, tmp_path):
    """Over HTTP as it is served: what is at hand is answered where it is read, the rest after one command."""
    with ExitStack() as stack:
        server = stack.enter_context(closing(RedisServer(folder=tmp_path)))
        server.start()
        settings = {"MDCTR_USERS": server.url, "MDCTR_USERS_CACHE_SECONDS": "60", "MDCTR_LOG_FORMAT": "json"}
        url = stack.enter_context(served(bundle.path, publish.url, tmp_path / "log", settings))
        client = stack.enter_context(httpx.Client(base_url=url))

        def rank(**user):
            answer = client.post("/v1/domains/books/rank", json={"user": user, "ids": [10, 11]})
            assert answer.status_code == 200
            return answer.json()["probabilities"]

        def reads():
            return server.ask("INFO", "commandstats").get("cmdstat_hmget", {"calls": 0})["calls"]

        server.ask("HSET", "mdctr:user:1", "profile", json.dumps(AGE))
        wanted = rank(id=1, **AGE)  # which reads the user, too
        before = reads()
        assert rank(id=1) == wanted
        assert [rank(id=1) for _ in range(5)] == [wanted] * 5
        assert reads() == before == 1
        unknown = rank(id=2)
        assert reads() == 2
        assert rank(id=2) == unknown
        server.kill()
        assert rank(id=1) == wanted
        assert all(rank(id=4) for _ in range(4))
        assert "users_missed" in client.get("/metrics").text
        server.start()

        def back():
            server.ask("HSET", "mdctr:user:3", "profile", json.dumps(AGE))
            return rank(id=3) == rank(id=3, **AGE)

        eventually(back)
        assert "hunter" not in (tmp_path / "log").read_text()

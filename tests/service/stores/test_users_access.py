"""The user of Redis that the service needs for what it keeps of users."""

from urllib.parse import quote

import pytest

from service.contract.errors import StoreError
from service.users._protocol import Click, User
from tests.conformance.test_users import with_users
from tests.service.stores.redises import ask_all, documented

CLICKS = (Click("books", 7, 1.0),)


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_the_user_documented_can_do_what_it_must(request, kind):
    redis = request.getfixturevalue(kind)
    url = redis if kind == "cluster" else redis.url
    command = [
        *documented("mdctr-users", "p/:@?"),
        *(["+cluster|slots", "+command"] if kind == "cluster" else []),
    ]
    ask_all(url, *command) if kind == "cluster" else redis.ask(*command)

    async def use(users):
        await users.append({"1": CLICKS})
        assert await users.read("1") == User({}, CLICKS)

    def as_user(password):
        return url.replace("://", f"://mdctr-users:{quote(password, safe='')}@")

    with_users(as_user("p/:@?"), use, forget=60)

    async def refused(users):
        with pytest.raises(StoreError) as caught:
            await users.read("1")
        assert "hunter2" not in str(caught.value)

    with_users(as_user("hunter2"), refused)

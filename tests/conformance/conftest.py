"""Every store of packs, and Redis, empty for each test."""

import pytest
import redis as sync_redis

from loadtest.redis_server import redis_cluster, redis_server
from service.contract import plugins


@pytest.fixture(scope="session")
def redis_url():
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_cluster_url():
    with redis_cluster() as url:
        yield url


@pytest.fixture
def emptied(request):
    """Empties `redis` or `redis_cluster`, and gives its URL."""

    def empty(name):
        url = request.getfixturevalue(f"{name}_url")
        for place in url.removeprefix("redis+cluster://").removeprefix("redis://").split(","):
            with sync_redis.Redis.from_url(f"redis://{place}") as client:
                client.flushall()
        return url

    return empty


@pytest.fixture(params=[*plugins.names("service.stores"), "redis_cluster"])
def url(request, tmp_path, emptied):
    """Where a store of packs is."""
    return f"directory:{tmp_path}" if request.param == "directory" else emptied(request.param)

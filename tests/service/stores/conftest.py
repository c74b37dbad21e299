"""Servers that tests of one file share, emptied for each."""

from contextlib import closing

import pytest

from loadtest.redis_server import RedisServer, redis_cluster
from tests.service.stores.redises import nodes


@pytest.fixture(scope="module")
def one_server():
    with closing(RedisServer()) as server:
        server.start()
        yield server


@pytest.fixture
def server(one_server):
    one_server.ask("FLUSHALL")
    return one_server


@pytest.fixture(scope="module")
def one_cluster():
    with redis_cluster(3, replicas=1) as url:
        yield url


@pytest.fixture
def cluster(one_cluster):
    for node in nodes(one_cluster)[:3]:
        node.flushall()
    return one_cluster

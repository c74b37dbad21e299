"""`Connection`: the clients of one Redis, be it a server, one watched by sentinels, or a cluster.

No retries inside them: who calls a store knows how long it can wait. A cluster's client follows the slot to
the node that has it, and one with sentinels asks them whenever it connects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from service.contract.errors import StoreError
from service.stores._redis_url import Target


class Connection:
    """Clients of one Redis; they connect when first asked."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # Not the clients' own limit: theirs fails where ours waits. A cluster's counts each node by itself.
        self._permits = asyncio.Semaphore(target.connections)
        self._sentinel: Sentinel | None = None
        if target.kind == "sentinel":
            options = {**target.sentinel, "retry": Retry(NoBackoff(), 0)}
            self._sentinel = Sentinel(target.hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._primary = self._client(target.connections)
        self._replicas = self._client(target.connections, replicas=True) if target.read_replicas else None

    @asynccontextmanager
    async def primary(self) -> AsyncGenerator[Redis, None]:
        """A client of whoever accepts writes; waits while as many as may be are in use.

        Raises:
            StoreError: where the block raises what redis-py raises.
        """
        async with self._permits:
            with _as_store_error():
                try:
                    yield await _ready(self._primary)
                except ResponseError as error:
                    if "READONLY" in str(error) and isinstance(self._primary, Redis):
                        # It was made a replica and kept our connections; new ones find the new primary.
                        await self._primary.connection_pool.disconnect(inuse_connections=False)
                    raise

    @asynccontextmanager
    async def replicas(self) -> AsyncGenerator[Redis | None, None]:
        """A client that reads from replicas; None where there is none to be used."""
        if self._replicas is None:
            yield None
            return
        async with self._permits:
            with _as_store_error():
                yield await _ready(self._replicas)

    @asynccontextmanager
    async def follower(self, silence: float) -> AsyncGenerator[Redis, None]:
        """A client of the primary apart from the others, for answers that take that long.

        Raises:
            StoreError: as `primary`.
        """
        client = self._client(2, socket_timeout=silence + self._target.client["socket_timeout"])
        try:
            with _as_store_error():
                yield await _ready(client)
        finally:
            await client.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for client in (self._primary, self._replicas, *(self._sentinel.sentinels if self._sentinel else ())):
            if client is not None:
                await client.aclose()

    def _client(self, connections: int, *, replicas: bool = False, **changes: float) -> Redis:
        target = self._target
        options: dict[str, Any] = {**target.client, "retry": Retry(NoBackoff(), 0), **changes}
        if target.kind == "cluster":
            strategy = LoadBalancingStrategy.RANDOM_REPLICA if replicas else None
            cluster = RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in target.hosts],
                # The URL's hosts stay those asked for the cluster's shape: nodes come and go, a name stays.
                dynamic_startup_nodes=False,
                load_balancing_strategy=strategy,
                # All keys are in one slot, and to follow it is enough. The other way closes every connection.
                reinitialize_steps=0,
                # And one to ask for the shape, while all others wait for answers.
                max_connections=connections + 1,
                **options,
            )
            return cast("Redis", cluster)  # the same commands
        options |= {"db": target.db, "max_connections": connections}
        if self._sentinel:
            find = self._sentinel.slave_for if replicas else self._sentinel.master_for
            return cast("Redis", find(target.service, **options))
        host, port = target.hosts[0]
        return Redis(host=host, port=port, **options)


async def _ready(client: Redis) -> Redis:
    """The client, that of a cluster once it knows the nodes: before, it sends a command to any of them."""
    either: object = client
    if isinstance(either, RedisCluster):
        await either.initialize()
    return client


@contextmanager
def _as_store_error() -> Iterator[None]:
    """What redis-py raises becomes a `StoreError`, whose text names host and port at most."""
    try:
        yield
    except MasterNotFoundError:
        # Its own text shows how each sentinel was asked.
        raise StoreError("Redis: no sentinel that answers knows a primary of this service") from None
    except (RedisError, RedisClusterException, OSError, UnicodeError) as error:
        lines = str(error).splitlines() or [""]
        raise StoreError(f"Redis: {type(error).__name__}: {lines[0]}") from None

"""What tests of the life cycle ask with, and what they count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from service import lifecycle
from service.engines._protocol import Engine
from service.stores._open import open_store
from service.stores._protocol import PackStore, Promotion
from tests.service import bundles


@dataclass(frozen=True)
class Desk:
    """A store, asked one thing at a time."""

    url: str

    def __call__(self, question: Callable[..., Awaitable[Any]], *given: Any, **named: Any) -> Any:
        async def ask() -> Any:
            store = open_store(self.url, bundles.BUNDLE)
            try:
                return await question(store, *given, **named)
            finally:
                await store.close()

        return asyncio.run(ask())

    def put(self, domain: str, *seeds: int) -> list[str]:
        """Put packs; their versions."""

        async def keep(store: PackStore) -> list[str]:
            return [await store.put(domain, bundles.make_pack(domain, seed).to_bytes()) for seed in seeds]

        found: list[str] = self(keep)
        return found

    def promoted(self, domain: str, *seeds: int) -> list[str]:
        """Put packs and make each live, one after the other."""
        versions = self.put(domain, *seeds)
        for at in versions:
            self(lifecycle.promote, {domain: at})
        return versions

    def live(self, domain: str = "books") -> str | None:
        async def look(store: PackStore) -> Any:
            return (await store.live()).get(domain)

        found: str | None = self(look)
        return found

    def versions(self, domain: str = "books") -> set[str]:
        async def look(store: PackStore) -> Any:
            return {pack.version for pack in await store.kept() if pack.domain == domain}

        found: set[str] = self(look)
        return found

    def history(self, domain: str = "books") -> list[Promotion]:
        async def look(store: PackStore) -> Any:
            return list(await store.history(domain))

        found: list[Promotion] = self(look)
        return found


class Counted:
    """An engine that counts what it holds."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.loads, self.releases = engine, 0, 0
        self.score, self.close = engine.score, engine.close

    def load(self, pack):
        self.loads += 1
        return self.engine.load(pack)

    def release(self, handle):
        self.releases += 1
        self.engine.release(handle)

"""Users that a test can hold up, cut off, and count."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from service.contract.errors import StoreError
from service.users._protocol import Click, User, UserId
from service.users.memory import MemoryUsers


class FakeUsers(MemoryUsers):
    """Users of one event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[UserId] = []
        """Who was read, in order."""
        self.down = False
        """Every call ends in `StoreError` while it is set."""
        self.hangs = False
        """No call ends while it is set."""

    async def read(self, user: UserId) -> User | None:
        self.reads.append(user)
        await self._up()
        return await super().read(user)

    async def append(self, clicks: Mapping[UserId, Sequence[Click]]) -> None:
        await self._up()
        await super().append(clicks)

    async def _up(self) -> None:
        while self.hangs:
            await asyncio.sleep(0.002)
        if self.down:
            raise StoreError("the store is down")

"""`Router`: from the domain that a request names to the pack that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Literal

from service.contract.errors import DeadlineExceeded, NotReady, UnknownDomain
from service.contract.pack import GENERAL, valid_domain
from service.packs import PackCache
from service.resident import Resident
from service.stores._protocol import Domain

REFUSE, GENERAL_PACK = "refuse", "general"
"""What may answer for an unknown domain, beside `domain:NAME`."""
ColdPolicy = Literal["wait", "general"]


class Router:
    """A domain's own pack where there is one; else what the policies say."""

    def __init__(
        self, packs: PackCache, declared: Collection[Domain], unknown: str, cold: ColdPolicy = "wait"
    ) -> None:
        """Route over `packs` as they change.

        Args:
            packs: the packs that serve.
            declared: domains that the bundle has packs for.
            unknown: what answers for a domain without a pack: `refuse`, `general`, or `domain:NAME`.
            cold: whether a request for a domain that is not resident waits for it, or has the general pack.
        """
        self._packs, self._declared, self._cold = packs, declared, cold
        kind, _, name = unknown.partition(":")
        self._fallback = {REFUSE: None, GENERAL_PACK: GENERAL}.get(kind, name)

    def now(self, domain: str) -> Resident | None:
        """The pack that answers for a domain at once; None where `route` has to be asked. Hold it soon.

        Raises:
            UnknownDomain: no pack answers.
        """
        own = self._packs.resident.use(domain)
        # The general pack is not asked for by its own name.
        if own is not None and domain != GENERAL:
            return own
        if not valid_domain(domain):
            raise UnknownDomain(domain)
        if self._fallback is None or self._packs.cold(domain):
            return None
        return self._packs.resident.use(self._fallback)

    async def route(self, domain: str, seconds: float) -> Resident:
        """The pack that answers for a domain. Hold it before anything else is awaited.

        Args:
            domain: asked for.
            seconds: how long a domain that is not resident may take to come.

        Raises:
            UnknownDomain: no pack answers.
            NotReady: none does yet.
            DeadlineExceeded: none does in time.
        """
        own = self.now(domain)
        if own is not None:
            return own
        if self._packs.cold(domain):
            return await self._when_cold(domain, seconds)
        if self._fallback is not None:
            return await self._instead(self._fallback, seconds)
        if domain in self._declared or domain in self._packs.live:
            refusal = self._packs.refused.get(domain)
            why = f" and was refused: {refusal.reason}" if refusal else " yet"
            raise NotReady(f"the pack of {domain} is not loaded{why}")
        raise UnknownDomain(domain)

    async def general(self, seconds: float) -> Resident:
        """The general pack, whatever domain is asked for. Hold it before anything else is awaited.

        Args:
            seconds: how long it may take to come.

        Raises:
            NotReady: it is not there yet.
            DeadlineExceeded: it did not come in time.
        """
        return await self._instead(GENERAL, seconds)

    def missing(self) -> list[Domain]:
        """Declared domains for which nothing answers; none of them is what makes the service ready."""
        packs = self._packs
        if self._fallback is not None and self._fallback in packs.resident:
            return []
        settled = packs.settled.is_set()
        return [
            domain
            for domain in self._declared
            if domain not in packs.resident and not (settled and packs.cold(domain))
        ]

    async def _when_cold(self, domain: str, seconds: float) -> Resident:
        if self._cold == "general":
            general = self._packs.resident.use(GENERAL)
            if general is not None:
                self._packs.fetch_soon(domain)
                return general
        return await self._brought(domain, seconds)

    async def _instead(self, domain: Domain, seconds: float) -> Resident:
        found = self._packs.resident.use(domain)
        if found is not None:
            return found
        if self._packs.cold(domain):
            return await self._brought(domain, seconds)
        what = "general pack" if domain == GENERAL else f"pack of {domain}, which answers instead,"
        raise NotReady(f"the {what} is not loaded yet")

    async def _brought(self, domain: Domain, seconds: float) -> Resident:
        try:
            async with asyncio.timeout(seconds):
                # Again, should it have been evicted between its coming and our turn.
                while (found := self._packs.resident.use(domain)) is None:
                    await self._packs.bring(domain)
        except TimeoutError:
            raise DeadlineExceeded(f"the pack of {domain} did not come in time") from None
        return found

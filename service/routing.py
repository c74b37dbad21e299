"""`Router`: from the domain that a request names to the pack that answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from service.contract.errors import NotReady, UnknownDomain
from service.contract.pack import GENERAL, valid_domain
from service.resident import Resident
from service.stores._protocol import Domain

UnknownPolicy = Literal["refuse", "general"]


class Router:
    """A domain's own pack where there is one; else what the policy says."""

    def __init__(
        self, resident: Mapping[Domain, Resident], declared: Collection[Domain], unknown: UnknownPolicy
    ) -> None:
        """Route over `resident` as it changes.

        Args:
            resident: the packs that serve.
            declared: domains that the bundle has packs for.
            unknown: what answers for a domain without a pack.
        """
        self._resident, self._declared, self._general = resident, declared, unknown == "general"

    def route(self, domain: str) -> Resident:
        """The pack that answers for a domain.

        Raises:
            UnknownDomain: none does.
            NotReady: none does yet.
        """
        # The name check also keeps the general pack from being asked for by its own name.
        if not valid_domain(domain):
            raise UnknownDomain(domain)
        own = self._resident.get(domain)
        if own is not None:
            return own
        if self._general:
            general = self._resident.get(GENERAL)
            if general is None:
                raise NotReady("the general pack is not loaded yet")
            return general
        if domain in self._declared:
            raise NotReady(f"the pack of {domain} is not loaded yet")
        raise UnknownDomain(domain)

    def missing(self) -> list[Domain]:
        """Declared domains for which nothing answers; none of them is what makes the service ready."""
        if self._general and GENERAL in self._resident:
            return []
        return [domain for domain in self._declared if domain not in self._resident]

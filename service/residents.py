"""`Residents`: the packs that answer at once, in so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping

from service.resident import Resident
from service.stores._protocol import Domain


class Residents(Mapping[Domain, Resident]):
    """Resident packs by domain; the domain unused for longest comes first, and goes first.

    It belongs to one event loop. A pack that goes is released after its last request.
    """

    def __init__(self, most_bytes: int, pinned: Collection[Domain]) -> None:
        """Nothing yet.

        Args:
            most_bytes: of all packs; where the pinned ones alone have more, they stay.
            pinned: domains that never go.
        """
        self.nbytes = 0
        self.pinned = frozenset(pinned)
        self._most = most_bytes
        self._packs: OrderedDict[Domain, Resident] = OrderedDict()

    def __getitem__(self, domain: Domain) -> Resident:
        return self._packs[domain]

    def __iter__(self) -> Iterator[Domain]:
        return iter(self._packs)

    def __len__(self) -> int:
        return len(self._packs)

    def use(self, domain: Domain) -> Resident | None:
        """The pack of a domain, which now is the one used last."""
        found = self._packs.get(domain)
        if found is not None:
            self._packs.move_to_end(domain)
        return found

    def put(self, fresh: Resident) -> int:
        """Let a pack answer from now on, instead of its domain's last; how many others had to go for it."""
        self.drop(fresh.domain)
        self._packs[fresh.domain] = fresh
        self.nbytes += fresh.handle.nbytes
        gone = 0
        while self.nbytes > self._most:
            spare = (name for name in self._packs if name not in self.pinned and name != fresh.domain)
            oldest = next(spare, None)
            if oldest is None:
                break
            self.drop(oldest)
            gone += 1
        return gone

    def drop(self, domain: Domain) -> None:
        """Let a domain's pack go, if there is one."""
        gone = self._packs.pop(domain, None)
        if gone is not None:
            self.nbytes -= gone.handle.nbytes
            gone.supersede()

    def room(self, nbytes: int = 0) -> bool:
        """Whether so many bytes more would fit."""
        return self.nbytes + nbytes <= self._most

    def clear(self) -> None:
        """Let all of them go."""
        for domain in list(self._packs):
            self.drop(domain)

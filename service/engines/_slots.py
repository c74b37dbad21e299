"""`Slots`: which pack lies in which slot of the device."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Taken:
    """Where packs lie, and what has to be written first."""

    slots: list[int]
    """Of each pack asked for, in order."""
    fresh: list[tuple[Hashable, int]]
    """Packs that are not in their slot yet."""


class Slots:
    """A number of slots, each for one pack. The pack unused for longest goes first.

    From `take` to `free` a pack keeps its slot, and nothing else is put there.
    """

    def __init__(self, count: int) -> None:
        """All of them empty.

        Raises:
            ValueError: there is none.
        """
        if count < 1:
            raise ValueError("there must be a slot at least")
        self.count = count
        self._empty = list(reversed(range(count)))
        self._held: OrderedDict[Hashable, int] = OrderedDict()
        """By pack, the one unused for longest first."""
        self._uses: Counter[Hashable] = Counter()
        self._gone: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, pack: Hashable) -> bool:
        return pack in self._held

    def room(self, packs: Iterable[Hashable]) -> bool:
        """Whether packs could be taken together now."""
        asked = set(packs)
        in_use = sum(1 for pack in self._uses if pack not in asked)
        return in_use + len(asked) <= self.count

    def take(self, packs: Iterable[Hashable]) -> Taken:
        """Give each pack a slot until `free`; the same pack has the same one.

        Raises:
            ValueError: more different packs are in use than there are slots; nothing was taken.
        """
        asked = list(packs)
        if not self.room(asked):
            raise ValueError(f"{len(set(asked))} packs at once; {self.count} slots")
        self._uses.update(asked)
        slots, fresh = [], []
        for pack in asked:
            slot = self._held.get(pack)
            if slot is None:
                slot = self._vacate()
                self._held[pack] = slot
                fresh.append((pack, slot))
            else:
                self._held.move_to_end(pack)
            slots.append(slot)
        return Taken(slots, fresh)

    def free(self, packs: Iterable[Hashable]) -> None:
        """End what `take` began, for each pack as often as it was asked for."""
        for pack in packs:
            self._uses[pack] -= 1
            if not self._uses[pack]:
                del self._uses[pack]
                if pack in self._gone:
                    self._gone.discard(pack)
                    self.drop(pack)

    def drop(self, pack: Hashable) -> None:
        """Forget a pack, once nothing uses it. Its slot is empty then."""
        if pack in self._uses:
            self._gone.add(pack)
            return
        slot = self._held.pop(pack, None)
        if slot is not None:
            self._empty.append(slot)

    def _vacate(self) -> int:
        if self._empty:
            return self._empty.pop()
        oldest = next(pack for pack in self._held if pack not in self._uses)
        return self._held.pop(oldest)

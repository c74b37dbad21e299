"""`Rescorer`: scores requests of the exposure log again, under any version of a pack or of the item table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service import editions
from service.contract.bundle import Bundle
from service.contract.pack import version as version_of
from service.engines._protocol import Engine
from service.features import Ids, RequestEncoder
from service.items import Items
from service.question import Question
from service.resident import Resident, load, parse
from service.scoring import Scorer
from service.stores._protocol import Domain, PackStore, Version

_MOST = 1 << 20
"""Candidates of one request: more than any service takes."""


class Rescorer:
    """One bundle's graph, and what the store has for it; nothing of it serves."""

    def __init__(self, bundle: Bundle, engine: Engine, store: PackStore, tolerance: float) -> None:
        """A rescorer that has loaded nothing yet.

        Args:
            bundle: whose graph scores.
            engine: with which.
            store: of packs and item tables; what the bundle itself has is not asked for there.
            tolerance: how far golden rows may be off, in probability.
        """
        self._bundle, self._engine, self._store, self._tolerance = bundle, engine, store, tolerance
        self._own = {(domain, version_of(data)): data for domain, data in bundle.packs()}
        self._packs: dict[tuple[Domain, Version], Resident] = {}
        self._encoder = RequestEncoder(bundle, _MOST)
        self._items: dict[Version | None, Items] = {None: self._encoder.items}
        self._scorer = Scorer(self._encoder, engine)

    async def pack(self, domain: Domain, version: Version) -> Resident:
        """A version of a domain's pack, checked and loaded.

        Raises:
            PackError: it is not what it should be.
            StoreError: the store does not answer, or has no such version.
        """
        key = domain, version
        if key not in self._packs:
            data = self._own.get(key)
            if data is None:
                data = await self._store.fetch(domain, version, self._bundle.manifest.most_pack_bytes)
            pack = parse(data, domain, version, self._bundle)
            self._packs[key] = load(pack, version, self._engine, self._tolerance)
        return self._packs[key]

    async def table(self, version: Version | None) -> None:
        """Read items from this version of the item table from now on; None is the bundle's own.

        Raises:
            ItemsError: it is damaged, or of another bundle.
            StoreError: the store does not answer, or has no such version.
        """
        if version is not None and version not in self._items:
            edition = await editions.read(self._store, version)
            edition.check(self._bundle, edition.nbytes)
            arrays = await editions.arrays(self._store, edition, [*edition.arrays])
            self._items[version] = Items.checked(version, arrays, self._bundle)
        self._encoder.items = self._items[version]

    def score(self, question: Question, answered: Sequence[str], pack: Resident) -> npt.NDArray[np.float64]:
        """Probabilities (B,) of what was answered, in its order.

        All that was asked is scored, however little of it was answered: a runtime's kernels for one row
        differ from those for many in the last bits.

        Args:
            question: from the log.
            answered: the B ids of the answer, as the log has them.
            pack: what scores.

        Raises:
            InvalidRequest: it does not fit this bundle.
        """
        ids: Ids = answered if question.ids is None else question.ids
        if self._bundle.items.dtype == "int":
            ids = [int(each) for each in ids]
        found = self._scorer.rank(pack, question.user, question.context, ids, question.items).probabilities
        if question.ids is None:
            return found
        first: dict[str, int] = {}
        for at, name in enumerate(map(str, ids)):
            first.setdefault(name, at)
        return found[[first[name] for name in answered]]

    def close(self) -> None:
        """Release the packs."""
        for pack in self._packs.values():
            pack.supersede()

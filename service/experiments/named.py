"""`named`: the versions of packs that a document of experiments needs, live or not."""

from __future__ import annotations

from service.contract.errors import Conflict
from service.experiments.document import ExperimentsError, parse
from service.experiments.place import open_place
from service.stores._protocol import Domain, Version


async def named(where: str) -> frozenset[tuple[Domain, Version]]:
    """Those that its arms name, and those that trials compare with; none where there is no document.

    Experiments that are over count, too: who takes them out of the document lets their packs go.

    Args:
        where: the document is, as `open_place` takes it; empty for nowhere.

    Raises:
        Conflict: the document is wrong. What is followed is then one before it, and not known here.
        StoreError: its place does not answer.
    """
    if not where:
        return frozenset()
    place = open_place(where)
    try:
        found = await place.read()
    finally:
        await place.close()
    if found is None:
        return frozenset()
    try:
        experiments = parse(found.text, canary=True).by_name.values()
    except ExperimentsError as error:
        raise Conflict(f"nobody knows which packs experiments need; the document is wrong: {error}") from None
    pairs: set[tuple[Domain, Version]] = set()
    for _, experiment in experiments:
        for arm in experiment.arms.values():
            pairs |= {*(arm.version or {}).items()}
        if experiment.trial is not None:
            pairs |= {(domain, old) for domain, old in experiment.trial.against.items() if old is not None}
    return frozenset(pairs)

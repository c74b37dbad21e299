"""`traffic`: what a log has of some domains, scored under two packs of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from service import lifecycle
from service.contract.errors import InvalidRequest, UnknownVersion
from service.contract.exposure import LogError, read
from service.experiments.policy import Traffic
from service.question import from_bytes
from service.rescoring import Rescorer
from service.stores._protocol import Domain, PackStore, Version


async def versions(store: PackStore, asked: Sequence[str]) -> dict[Domain, tuple[Version, Version]]:
    """By domain the old and the new pack, from `DOMAIN=NEW`, against what is live, or `DOMAIN=OLD:NEW`.

    Raises:
        UnknownVersion: one is not so, or stands for no version.
    """
    live = await store.live()
    pairs = []
    for each in asked:
        domain, _, given = each.partition("=")
        old, colon, new = given.partition(":")
        if not colon:
            old, new = live.get(domain) or "", old
        if not old or not new:
            raise UnknownVersion(
                f"{each!r}: nothing is live there" if new else f"{each!r} is not DOMAIN=VERSION"
            )
        pairs += [(domain, old), (domain, new)]
    found = await lifecycle.resolve(store, pairs, verify=True)
    return {domain: (old, new) for (domain, old), (_, new) in zip(found[::2], found[1::2], strict=True)}


async def traffic(
    log: Path, bundle: str, versions: Mapping[Domain, tuple[Version, Version]], rescorer: Rescorer, most: int
) -> dict[Domain, Traffic]:
    """The latest requests of each domain, under its old and its new pack.

    Args:
        log: folder of exposures and clicks.
        bundle: its id; requests that another answered are left out.
        versions: by domain, the old pack and the new one.
        rescorer: of that bundle.
        most: requests of a domain that are scored.

    Raises:
        LogError: it has no such request with what was asked.
        StoreError: a pack cannot be had.
        PackError: a pack is not what it should be.
    """
    found = read(log)
    exposures = found.exposures
    asked = pc.and_(pc.is_valid(exposures["request"]), pc.equal(exposures["bundle"], bundle))
    exposures = exposures.filter(asked)
    clicked = set(zip(*(found.clicks[name].to_pylist() for name in ("request_id", "item")), strict=True))
    return {
        domain: await _of_domain(exposures, clicked, domain, pair, (rescorer, most))
        for domain, pair in versions.items()
    }


async def _of_domain(
    exposures: pa.Table,
    clicked: set[tuple[str, str]],
    domain: Domain,
    versions: tuple[Version, Version],
    by: tuple[Rescorer, int],
) -> Traffic:
    rescorer, most = by
    packs = [await rescorer.pack(domain, version) for version in versions]
    units: dict[str, int] = {}
    unit, sizes, scores, clicks = [], [], [], []
    for row in _latest(exposures.filter(pc.equal(exposures["domain"], domain)), most):
        await rescorer.table(row["items"])
        question = from_bytes(row["request"])
        try:
            scores.append([rescorer.score(question, row["ids"], pack) for pack in packs])
        except InvalidRequest:
            continue  # under one of them there is no finite score
        unit.append(units.setdefault(row["unit"], len(units)))
        sizes.append(len(row["ids"]))
        clicks += [(row["request_id"], item) in clicked for item in row["ids"]]
    if not scores:
        raise LogError(
            f"the log has nothing of {domain} with what was asked: is MDCTR_EXPOSURES_REQUESTS set?"
        )
    old, new = (np.concatenate([pair[which] for pair in scores]) for which in (0, 1))
    return Traffic(np.array(unit), np.array(sizes), np.array(clicks), old, new)


def _latest(exposures: pa.Table, most: int) -> Iterator[Mapping[str, Any]]:
    """Each request once, the newest first."""
    order = pc.sort_indices(exposures["time"], sort_keys=[("", "descending")])
    seen: set[str] = set()
    for batch in exposures.take(order).to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["ids"] and row["request_id"] not in seen:
                seen.add(row["request_id"])
                yield row
            if len(seen) >= most:
                return

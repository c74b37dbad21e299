"""`Material`: a bundle, versions of its domains' packs, good and bad, and what torch answers under them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import redis as sync_redis

from loadtest.exported import export
from loadtest.variants import Query, Variants
from service.contract.bundle import Bundle
from service.contract.pack import DomainPack, version
from service.stores._open import open_store
from training.data.prepare import Prepared


@dataclass
class Material:
    """What is promoted, what is asked, and what should be answered."""

    bundle: Bundle
    good: dict[str, dict[str, bytes]]
    """By domain, then version."""
    bad: dict[str, dict[str, bytes]]
    queries: list[Query]
    expected: dict[tuple[int, str], npt.NDArray[np.float64]]
    """By position of the query and version."""


def make(place: Path, *, domains: int, versions: int, queries: int, candidates: int) -> Material:
    """A bundle, versions of each domain's pack, requests, and what torch answers to them.

    Args:
        place: a folder for what is made.
        domains: how many.
        versions: good ones of each domain.
        queries: different requests of each domain.
        candidates: of a request.
    """
    made = export(place, {"domains": domains, "items": 5000, "users": 5000})
    bundle, variants = made.bundle, Variants(made.model, made.bundle)
    asked = list(_queries(made.prepared, variants, bundle, queries, candidates))
    good: dict[str, dict[str, bytes]] = {}
    bad: dict[str, dict[str, bytes]] = {}
    expected = {}
    for domain in bundle.manifest.domains:
        mine = [at for at, query in enumerate(asked) if query.domain == domain]
        good[domain] = {}
        for seed in range(versions):
            pack = variants.pack(domain, seed, asked[mine[0]], share=0.02)
            data = pack.to_bytes(bundle.base)
            good[domain][version(data)] = data
            for at in mine:
                expected[at, version(data)] = variants.probabilities(pack, asked[at].arrays)
        bad[domain] = dict(_bad(variants.pack(domain, versions, asked[mine[0]]), bundle))
    return Material(bundle, good, bad, asked, expected)


def _queries(
    prepared: Prepared, variants: Variants, bundle: Bundle, count: int, candidates: int
) -> Iterator[Query]:
    rows = prepared.split("test").to_dicts()
    draw = np.random.default_rng(0)
    for domain in bundle.manifest.domains:
        for _ in range(count):
            row = rows[int(draw.integers(len(rows)))]
            yield variants.query(domain, row, draw.integers(0, len(bundle.items), candidates))


def _bad(pack: DomainPack, bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    """Packs that must never serve, under the version they claim."""
    name = max(pack.tensors, key=lambda each: pack.tensors[each].size)
    tensor = pack.tensors[name]
    nan = tensor.copy()
    nan.flat[0] = np.nan
    off = replace(pack.golden, logit=pack.golden.logit + np.float32(0.5))
    wrong = {
        "truncated": pack.to_bytes()[:-100],
        "shape": replace(pack, tensors={**pack.tensors, name: tensor[:-1]}).to_bytes(),
        "nan": replace(pack, tensors={**pack.tensors, name: nan}).to_bytes(),
        "missing": replace(pack, tensors={k: v for k, v in pack.tensors.items() if k != name}).to_bytes(),
        "bundle": replace(pack, bundle=f"{bundle.manifest.name}-00000000").to_bytes(),
        "golden": replace(pack, golden=off).to_bytes(),
        "noise": b"\x10" + bytes(7) + os.urandom(500),
    }
    for data in wrong.values():
        yield version(data), data
    # What lies under a version's name is not that version.
    yield "0123456789abcdef", pack.to_bytes()


async def fill(url: str, material: Material) -> None:
    """Put every pack, and promote one of each domain."""
    bundle = material.bundle
    prefix = f"mdctr:{{{bundle.manifest.bundle}}}:pack"
    with sync_redis.Redis.from_url(url) as raw:
        for domain, packs in material.bad.items():
            for name, data in packs.items():
                # As somebody would who does not use our commands, which refuse them.
                raw.set(f"{prefix}:{domain}:{name}", data)
    store = open_store(url, bundle.manifest.bundle)
    try:
        for domain, packs in material.good.items():
            for data in packs.values():
                await store.put(domain, data)
        general = dict(bundle.packs())["_general"]
        first = {domain: next(iter(packs)) for domain, packs in material.good.items()}
        await store.promote({**first, "_general": await store.put("_general", general)}, run="bench")
    finally:
        await store.close()

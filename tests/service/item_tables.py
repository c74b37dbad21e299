"""Item tables for the tiny bundle, and how they come into a store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from export import items
from service.contract.bundle import Bundle
from service.contract.edition import Edition, parts
from service.stores._names import ITEM_PARTS, ITEMS
from service.stores._open import open_store
from tests.service import bundles


def publish(url: str, bundle: Bundle, columns: Mapping[str, Any], *, add: bool = False) -> str:
    """Make a table of raw columns live, as `python -m export items` does; its version."""

    async def run() -> str:
        store = open_store(url, bundle.manifest.bundle)
        try:
            made = await items.make(store, bundle, dict(columns), add=add)
            changes = await items.publish(store, bundle, made)
        finally:
            await store.close()
        assert changes.after is not None
        return changes.after

    return asyncio.run(run())


def raw(url: str, bundle: Bundle, arrays: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> str:
    """Make arrays live, whatever they are; the version.

    Args:
        url: the store.
        bundle: that they claim to be for.
        arrays: by name.
        changes: of the edition.
    """
    edition = Edition.of(bundle, arrays).model_copy(update=changes)

    async def run() -> str:
        store = open_store(url, bundle.manifest.bundle)
        try:
            for array in arrays.values():
                for part in parts(array):
                    await store.put(ITEM_PARTS, bytes(part))
            version = await store.put(ITEMS, edition.to_bytes())
            await store.promote({ITEMS: version})
        finally:
            await store.close()
        return version

    return asyncio.run(run())


def rollback(url: str) -> None:
    """As `python -m export items BUNDLE --rollback`."""

    async def run() -> None:
        store = open_store(url, bundles.BUNDLE)
        try:
            await items.rollback(store)
        finally:
            await store.close()

    asyncio.run(run())


def expected(domain: str, columns: Mapping[str, Any], user: Mapping[str, Any] | None = None) -> Any:
    """The probabilities of raw candidates under a domain's first pack, in numpy."""
    pack = bundles.make_pack(domain)
    asked = {f"user.{name}": [value] for name, value in (user or {}).items()}
    inputs = bundles.inputs_of(asked, columns, len(columns["item.id"]))
    return 1 / (1 + pow(2.718281828459045, -bundles.logits(pack.tensors, inputs)))

"""Bundle to store: every pack put first, all promoted in one step last."""

from __future__ import annotations

import getpass
from dataclasses import dataclass

from service.contract.bundle import Bundle
from service.contract.pack import version
from service.stores._protocol import PackStore


@dataclass(frozen=True)
class Difference:
    """What publishing changes, or would change, for one domain."""

    domain: str
    live: str | None
    """The version that is live in the store; None if the domain has none."""
    bundle: str
    """The version that the bundle has."""
    nbytes: int

    @property
    def action(self) -> str:
        """`keep`, `add` or `replace`."""
        if self.live == self.bundle:
            return "keep"
        return "add" if self.live is None else "replace"


async def difference(bundle: Bundle, store: PackStore) -> list[Difference]:
    """Each of the bundle's packs against what is live.

    Raises:
        StoreError: the store does not answer.
    """
    live = await store.live()
    return [Difference(domain, live.get(domain), version(data), len(data)) for domain, data in bundle.packs()]


async def publish(bundle: Bundle, store: PackStore, *, by: str = "") -> list[Difference]:
    """Make a bundle's packs live, and return what that changed.

    Killed at any point, it leaves the store with all of the old versions live, or all of the new; run
    again, it completes.

    Args:
        bundle: what to publish; the history names it as where the packs came from.
        store: where to.
        by: who publishes, for the history.

    Raises:
        StoreError: the store does not answer.
    """
    found = await difference(bundle, store)
    for domain, data in bundle.packs():
        await store.put(domain, data)
    changed = {each.domain: each.bundle for each in found if each.action != "keep"}
    if changed:
        await store.promote(changed, run=bundle.manifest.bundle, by=by)
    return found


def person() -> str:
    """Who runs this command, for the history; empty where the account has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number without an entry, as in a container
        return ""

"""The names that packs are kept under, and item tables beside them."""

from __future__ import annotations

from service.contract.errors import StoreError, UnknownVersion
from service.contract.pack import GENERAL, valid_domain
from service.stores._protocol import Domain, Version

ITEMS = "_items"
"""Editions of the item table are kept, promoted and remembered as a domain's packs are, under this name.
Nothing live stands for the bundle's own table."""
ITEM_PARTS = "_items.parts"
"""What editions name, by its hash. Nothing of it is ever promoted."""


def check(domain: Domain, version: Version | None = None) -> None:
    """Refuse what could become another key or file than that of a pack, or of an item table.

    Raises:
        StoreError: a domain cannot be called so.
        UnknownVersion: nor can a version.
    """
    if not is_domain(domain) and domain not in {ITEMS, ITEM_PARTS}:
        raise StoreError(f"{domain!r} is not a domain's name")
    if version is not None and not (version.isascii() and version.isalnum()):
        raise UnknownVersion(f"{version!r} is not a version")


def is_domain(name: str) -> bool:
    """Whether packs may be kept under a name: a domain's, or the general pack's."""
    return name == GENERAL or valid_domain(name)

"""The names that packs are kept under, and item tables beside them."""

from __future__ import annotations

from typing import Any

from service.contract.errors import StoreError, UnknownVersion
from service.contract.pack import GENERAL, valid_domain
from service.stores._protocol import Domain, Pointers, Version

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


def pointers(told: Any) -> Pointers:  # noqa: ANN401 - whatever JSON held
    """What somebody says is live.

    Raises:
        TypeError: it is not texts by text.
        ValueError: a text is none that can be written down.
    """
    if not isinstance(told, dict) or not {*map(type, told.values())} <= {str, type(None)}:
        raise TypeError("not a version, or null, by domain")
    for domain, version in told.items():
        f"{domain}{version}".encode()  # half a surrogate pair cannot be logged, answered or looked for
    return told


def is_domain(name: str) -> bool:
    """Whether packs may be kept under a name: a domain's, or the general pack's."""
    return name == GENERAL or valid_domain(name)

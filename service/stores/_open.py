"""From a URL to the store it names."""

from __future__ import annotations

from service.contract import plugins
from service.contract.errors import UnknownOption
from service.stores._protocol import PackStore

_PLAIN = {"rediss": "redis"}
"""Schemes that are another one over TLS."""


def open_store(url: str, bundle: str) -> PackStore:
    """Open the store at `url`, as one bundle sees it. Nothing is connected yet.

    Args:
        url: its scheme is the store's name: `redis://HOST:PORT/DB`, `rediss://...`, `directory:PATH`.
        bundle: `Manifest.bundle`.

    Raises:
        UnknownOption: the URL has no scheme, or one that no store has.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or not scheme:
        # The text must not repeat the URL: it may hold a password.
        raise UnknownOption("a store's URL begins with its kind: redis://HOST:PORT/DB or directory:PATH")
    store: PackStore = plugins.load("service.stores", _PLAIN.get(scheme, scheme)).open(url, bundle)
    return store

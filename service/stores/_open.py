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
        url: its scheme is the store's name, with `+` and a variant where the store has some:
            `redis://HOST:PORT/DB`, `rediss+cluster://...`, `directory:PATH`.
        bundle: `Manifest.bundle`.

    Raises:
        UnknownOption: the URL has no scheme, or one that no store has.
    """
    name = kind(url)
    if not name:
        # The text must not repeat the URL: it may hold a password.
        raise UnknownOption("a store's URL begins with its kind: redis://HOST:PORT/DB or directory:PATH")
    store: PackStore = plugins.load("service.stores", name).open(url, bundle)
    return store


def kind(url: str) -> str:
    """The option that a URL's scheme names; empty where it has no scheme."""
    scheme, colon, _ = url.partition(":")
    name = scheme.partition("+")[0] if colon else ""
    return _PLAIN.get(name, name)

"""From a URL to the users it names."""

from __future__ import annotations

from service.contract import plugins
from service.contract.errors import UnknownOption
from service.users._protocol import Users

_PLAIN = {"rediss": "redis"}
"""Schemes that are another one over TLS."""


def open_users(url: str, forget: int = 0) -> Users:
    """Open the users at `url`. Nothing is connected yet.

    Args:
        url: `redis://HOST:PORT/DB` in all forms that a store of packs may have, or `memory:`.
        forget: seconds after which a user without a click is forgotten; 0 for never.

    Raises:
        UnknownOption: the URL has no scheme, or one that there is not.
    """
    scheme, colon, _ = url.partition(":")
    name = scheme.partition("+")[0]
    if not colon or not name or "." in name:
        # The text must not repeat the URL: it may hold a password.
        raise UnknownOption("the URL of users begins with its kind: redis://HOST:PORT/DB or memory:")
    users: Users = plugins.load("service.users", _PLAIN.get(name, name)).open(url, forget)
    return users

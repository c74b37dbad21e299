"""From a URL to the users it names."""

from __future__ import annotations

from service.contract import plugins
from service.contract.errors import UnknownOption
from service.stores._open import kind
from service.users._protocol import Users


def open_users(url: str, forget: int = 0) -> Users:
    """Open the users at `url`. Nothing is connected yet.

    Args:
        url: `redis://HOST:PORT/DB` in all forms that a store of packs may have, or `memory:`.
        forget: seconds after which a user without a click is forgotten; 0 for never.

    Raises:
        UnknownOption: the URL has no scheme, or one that there is not.
    """
    name = kind(url)
    if not name or "." in name:
        # The text must not repeat the URL: it may hold a password.
        raise UnknownOption("the URL of users begins with its kind: redis://HOST:PORT/DB or memory:")
    users: Users = plugins.load("service.users", name).open(url, forget)
    return users

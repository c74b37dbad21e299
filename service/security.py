"""API keys: who asks, and what they may do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from service.settings import Settings

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="mdctr"'}


class Scope(IntEnum):
    """What a key is good for; a larger scope holds the smaller."""

    RANK = 1
    ADMIN = 2


@dataclass(frozen=True)
class Key:
    """A key without its secret."""

    name: str
    scope: Scope


class KeyRing:
    """The keys of the settings, as digests made once."""

    def __init__(self, settings: Settings) -> None:
        self.take(settings)

    def take(self, settings: Settings) -> None:
        """Have the keys of these settings, and no others; requests ask for the old or the new.

        Args:
            settings: whose keys they are.
        """
        scopes = (Scope.RANK, settings.rank_keys), (Scope.ADMIN, settings.admin_keys)
        self._keys = {
            _digest(secret.get_secret_value()): Key(name, scope)
            for scope, keys in scopes
            for name, secret in keys.items()
        }
        self.names = sorted(key.name for key in self._keys.values())
        """To be shown, which secrets never are."""
        self.rank_is_open = not settings.rank_keys
        self.has_admin = bool(settings.admin_keys)

    def find(self, secret: str) -> Key | None:
        """The key with this secret.

        Every key is compared, and each in constant time, so how long it takes tells nothing of any.
        """
        digest, found = _digest(secret), None
        for known, key in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def identify(self, headers: Mapping[bytes, bytes]) -> Key:
        """The key that a request's headers (names in lower case) give.

        Raises:
            HTTPException: 401.
        """
        secret = _secret(headers)
        if not secret:
            raise HTTPException(401, "a key is needed, as X-API-Key or Authorization: Bearer", _CHALLENGE)
        key = self.find(secret)
        if key is None:
            raise HTTPException(401, "the key is not known", _CHALLENGE)
        return key


def may_rank(request: Request) -> None:
    """Let any key pass where rank keys are set, and everybody where none is.

    Raises:
        HTTPException: 401.
    """
    ring: KeyRing = request.app.state.keys
    if not ring.rank_is_open:
        _identify(request, ring)


def may_administer(request: Request) -> None:
    """Let an admin key pass.

    Raises:
        HTTPException: 401, or 403 where the key is not an admin's or there is no admin key at all.
    """
    ring: KeyRing = request.app.state.keys
    if not ring.has_admin:
        raise HTTPException(403, "no admin key is configured: set MDCTR_ADMIN_KEYS")
    key = _identify(request, ring)
    if key.scope < Scope.ADMIN:
        raise HTTPException(403, f"key {key.name} may rank only")


def guarded(by: Callable[[Request], None]) -> type[APIRoute]:
    """A class of routes that ask a guard before anything of a request is read.

    A dependency would do the same, and take several times as long as the guard itself.
    """

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                by(request)
                return await handle(request)

            return guard

    return Guarded


def describe(document: dict[str, Any]) -> None:
    """Tell an OpenAPI document of the keys; ranking needs none where none is configured."""
    document.setdefault("components", {})["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    either: list[dict[str, list[str]]] = [{"key": []}, {"bearer": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/admin"):
                operation["security"] = either
            elif path.startswith(("/v1/domains", "/v1/events")):
                operation["security"] = [{}, *either]


def _identify(request: Request, ring: KeyRing) -> Key:
    key = ring.identify(dict(request.scope["headers"]))
    request.state.record["key"] = key.name
    return key


def _secret(headers: Mapping[bytes, bytes]) -> str:
    """What a request gives for a secret; empty where it gives none."""
    given = headers.get(b"x-api-key", b"").decode("latin-1")
    if b"x-api-key" not in headers:
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return ""
    return given.strip()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()

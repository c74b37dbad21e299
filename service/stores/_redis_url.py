"""`Target`: what a Redis URL names.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DB]
    redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]

and the same over TLS with `rediss` for `redis`. `docs/redis.md` lists the options.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from service.contract.errors import UnknownOption

Kind = Literal["single", "sentinel", "cluster"]

_KINDS: Mapping[str, tuple[Kind, int]] = {
    "redis": ("single", 6379),
    "redis+sentinel": ("sentinel", 26379),
    "redis+cluster": ("cluster", 6379),
}
"""By scheme without TLS, what it names and its usual port."""
_TIMEOUT = 2.0
"""Seconds that a connection, and one command, may take."""
_CONNECTIONS = 16
_REFUSED = (
    "not the URL of a Redis: redis://[USER:PASSWORD@]HOST:PORT/DB, "
    "redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/SERVICE[/DB] or "
    "redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]; with TLS, rediss for redis"
)


@dataclass(frozen=True)
class Target:
    """A Redis, and how to talk to it."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    """The server; or some of the sentinels; or some nodes of the cluster."""
    service: str
    """What the sentinels call it."""
    db: int
    connections: int
    """At most so many at a time."""
    read_replicas: bool
    """Whether packs are read from replicas."""
    client: Mapping[str, Any] = field(repr=False)
    """Arguments of a client, as redis-py names them."""
    sentinel: Mapping[str, Any] = field(repr=False)
    """Arguments of a sentinel's client."""


def parse(url: str) -> Target:
    """Read a URL.

    Raises:
        UnknownOption: it names no Redis, or an option that there is not. The text repeats nothing of the URL:
            where a password holds a `/`, its parts stand everywhere.
    """
    try:
        parts = urlsplit(url)
        kind, port = _KINDS[parts.scheme.replace("rediss", "redis", 1)]
        login, _, places = parts.netloc.rpartition("@")
        hosts = tuple(_host(place, port, kind) for place in places.split(","))
        service, db = _path(parts.path, kind)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        whole = not parts.fragment and (kind != "single" or len(hosts) == 1)
    except (ValueError, KeyError):
        raise UnknownOption(_REFUSED) from None
    if not whole:
        raise UnknownOption(_REFUSED)
    options = _options(given)
    tls = parts.scheme.startswith("rediss")
    _check(options, kind, tls)
    username, colon, password = login.partition(":")
    names = {"username": unquote(username) or None, "password": unquote(password) if colon else None}
    sentinels = {
        key: options.pop(f"sentinel_{key}")
        for key in ("username", "password")
        if f"sentinel_{key}" in options
    }
    connections = options.pop("max_connections", _CONNECTIONS)
    read_replicas = options.pop("read_replicas", False)
    common = {
        "socket_timeout": _TIMEOUT,
        "socket_connect_timeout": _TIMEOUT,
        "socket_keepalive": True,
        # The older of two ways to write answers; every server speaks it.
        "protocol": 2,
        **({"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True} if tls else {}),
        **options,
    }
    return Target(kind, hosts, service, db, connections, read_replicas, common | names, common | sentinels)


def _host(place: str, port: int, kind: Kind) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    host = parts.hostname or ("localhost" if kind == "single" and not place else "")
    if not host:
        raise ValueError
    return host, parts.port or port


def _path(path: str, kind: Kind) -> tuple[str, int]:
    """The service and the database that a path names."""
    segments = [unquote(segment) for segment in path.removeprefix("/").removesuffix("/").split("/")]
    service = segments.pop(0) if kind == "sentinel" else ""
    db = int("".join(segments) or "0")
    if len(segments) > 1 or db < 0 or (kind == "sentinel" and not service) or (kind == "cluster" and db):
        raise ValueError
    return service, db


def _options(given: list[tuple[str, str]]) -> dict[str, Any]:
    options = {}
    for name, text in given:
        if name not in _READERS:
            raise UnknownOption(f"a Redis URL's options are {', '.join(sorted(_READERS))}; it has another")
        try:
            options[name] = _READERS[name](text)
        except ValueError:
            raise UnknownOption(f"the option {name} of a Redis URL has a value that it cannot have") from None
    return options


def _check(options: Mapping[str, Any], kind: Kind, tls: bool) -> None:
    """Refuse options that would do nothing."""
    for name in options:
        if name.startswith("ssl_") and not tls:
            raise UnknownOption(f"{name} needs TLS: a Redis URL that begins with rediss")
        if name.startswith("sentinel_") and kind != "sentinel":
            raise UnknownOption(f"{name} needs sentinels: a Redis URL that begins with redis+sentinel")
    if kind == "single" and options.get("read_replicas"):
        raise UnknownOption(
            "read_replicas needs a Redis URL that finds them: redis+sentinel or redis+cluster; "
            "redis names one server"
        )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _yes(text: str) -> bool:
    if text.lower() not in {"true", "yes", "1", "false", "no", "0"}:
        raise ValueError
    return text.lower() in {"true", "yes", "1"}


def _need(text: str) -> str:
    if text not in {"none", "optional", "required"}:
        raise ValueError
    return text


_READERS: Mapping[str, Callable[[str], Any]] = {
    "client_name": str,
    "health_check_interval": _count,
    "max_connections": _count,
    "read_replicas": _yes,
    "sentinel_password": str,
    "sentinel_username": str,
    "socket_connect_timeout": _seconds,
    "socket_keepalive": _yes,
    "socket_timeout": _seconds,
    "ssl_ca_certs": str,
    "ssl_ca_data": str,
    "ssl_cert_reqs": _need,
    "ssl_certfile": str,
    "ssl_check_hostname": _yes,
    "ssl_ciphers": str,
    "ssl_keyfile": str,
    "ssl_min_version": lambda text: ssl.TLSVersion(int(text)),
}
"""By option, what reads its value. All but `read_replicas` and `sentinel_` are named as in redis-py."""

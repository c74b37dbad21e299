"""`Settings`: what an operator decides, from `MDCTR_*` environment variables."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.contract.edition import MOST
from service.contract.errors import SettingsError
from service.contract.manifest import DOMAIN

PREFIX = "MDCTR_"
_NOT_OURS = {"MDCTR_DATA_DIR"}
"""Variables with the prefix that other commands read."""
_SECRET = {
    "rank_keys",
    "admin_keys",
    "force_secret",
    "store",
    "users",
    "experiments",
    "exposures_stream",
}
"""Settings that may be files: those that are secrets, and URLs with a password in them."""
_LARGEST_SECRET = 1_000_000
"""Bytes of such a file."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice")
    return names


def _decoded(given: Any) -> Any:  # noqa: ANN401 - whatever the sources gave
    """JSON as an object; its text is never repeated, because it holds secrets."""
    if not isinstance(given, str):
        return given
    try:
        decoded = json.loads(given or "{}", object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        twice = not isinstance(error, (json.JSONDecodeError, RecursionError))
        raise ValueError("a name stands twice" if twice else "it is not JSON") from None
    return decoded


def _sendable(keys: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, secret in keys.items():
        value = secret.get_secret_value()
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError(f"the key of {name} must be printable ASCII without spaces, to fit a header")
    return keys


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Secret = Annotated[SecretStr, Field(min_length=16)]
Keys = Annotated[
    dict[_Name, _Secret], NoDecode, BeforeValidator(_decoded), AfterValidator(_sendable), Field(repr=False)
]


class Settings(BaseSettings):
    """Settings of the service. A variable with the prefix that is none of them is an error."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    bundle: Path = Path("bundle")
    """The folder that `python -m export build` made."""
    store: Annotated[str, Field(repr=False)] = "redis://127.0.0.1:6379/0"
    """Where packs live: `redis://HOST:PORT/DB`, `rediss://...` or `directory:PATH`."""
    users: Annotated[str, Field(repr=False)] = ""
    """Where users' profiles and clicks live: `redis://...` as for packs, or `memory:`, which is each worker's
    own. Empty: nothing is kept of users."""
    users_cache_seconds: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """For how long a user's profile that was read is used again; 0 reads it for each request."""
    users_timeout_ms: Annotated[float, Field(gt=0)] = 20.0
    """Milliseconds that a request waits for its user's profile; then it is scored without."""
    users_forget_seconds: Annotated[int, Field(ge=0)] = 0
    """A user without a click for so long is forgotten, profile and clicks; 0 for never."""
    bundles: tuple[Path, ...] = ()
    """Folders of other bundles that arms of experiments may name; a JSON list. They take the same requests,
    and are as warm as the first."""
    experiments: Annotated[str, Field(repr=False)] = ""
    """Where the document of experiments is: a file, or `redis://...` as for packs. By default, none."""
    experiments_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two looks for another document."""
    shadow_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Of a worker's time, what scoring under shadow arms may take."""
    force_secret: Annotated[SecretStr, Field(min_length=16)] | None = None
    """What the header `X-Force-Arm` is signed with: at least 16 characters. Without it no arm is forced."""
    exposures: Path | None = None
    """A folder for the log of what is answered, shown and clicked; needs the extra `exposures`. By default
    none is written."""
    exposures_part_seconds: Annotated[float, Field(gt=0)] = 600.0
    """After how long a part of the log becomes a Parquet file."""
    exposures_part_bytes: Annotated[int, Field(ge=1)] = 64_000_000
    """With how many bytes a part of the log becomes a Parquet file."""
    exposures_queue: Annotated[int, Field(ge=1)] = 2_000_000
    """Candidates of a worker that may wait to be written; what would be more is dropped and counted."""
    exposures_stream: Annotated[str, Field(repr=False)] = ""
    """Where the log goes besides: `redis://...` as for packs, to the stream `mdctr:exposures`."""
    exposures_stream_entries: Annotated[int, Field(ge=1)] = 3600
    """Entries of that stream that are kept, about; a worker adds one or two a second."""
    exposures_requests: bool = False
    """Log what was asked, too, with the fields of users: what `python -m service replay` needs."""
    traces: Annotated[str, Field(pattern=r"^(https?://[^/@\s]+/\S+)?$")] = ""
    """Where spans of requests go: the URL of a collector that takes OTLP over HTTP, such as
    `http://HOST:4318/v1/traces`; needs the extra `tracing`. Empty: none are made."""
    traces_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of the requests whose callers send no `traceparent`, how many are traced. Others are if it says so."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    allow_public: bool = False
    """Listen on an address that is not this machine's own, although no rank keys are set."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port to listen on; 0 takes a free one."""
    tls_cert: Path | None = None
    """The listener's certificate and those that signed it, in PEM; by default it speaks HTTP without TLS. It
    is read again when it changes."""
    tls_key: Path | None = None
    """The certificate's key, in PEM, without a password; by default it stands in the same file."""
    tls_client_ca: Path | None = None
    """Who must have signed the certificates that callers show, in PEM; by default they need none."""
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    """Connections of a worker; one more is answered 503, and closed."""
    request_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds for a whole request to come, head and body, and for an answer to be taken; up to half as long
    again may pass until the connection is closed."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that answer; they share packs, item table and weights."""
    engine: str = "ort"
    """What scores: a module of `service.engines`, or a dotted name."""
    engine_options: Annotated[dict[str, Any], NoDecode, BeforeValidator(_decoded)] = {}
    """What the engine's own `Options` decide: a JSON object."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads that one request's scoring may use."""
    golden_tolerance: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """How far a pack's golden rows may be from training's probabilities; a pack further off is refused."""
    unknown_domain: Annotated[str, Field(pattern=rf"^(refuse|general|domain:{DOMAIN})$")] = "refuse"
    """What answers for a domain without a pack: `refuse`, a 404; `general`, the general pack; `domain:NAME`,
    the pack of another domain."""
    cold_domain: Literal["wait", "general"] = "wait"
    """What a request gets whose domain has a pack that is not resident: `wait`, the pack, within the
    request's deadline; `general`, the general pack until the domain's own is there."""
    resident_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000
    """Bytes of packs that answer at once; those unused for longest go first. The workers share them."""
    items_bytes: Annotated[int, Field(ge=0)] = MOST
    """Bytes that an item table from the store may have, item halves included; a larger one is refused."""
    pinned: tuple[str, ...] = ()
    """Domains whose packs are loaded first and never go; a JSON list."""
    shelf: Path | None = None
    """A folder of this machine for packs and item tables that serve. A service whose store does not answer at
    its start serves what served last time from there, and says so. By default a temporary folder, which ends
    with the service."""
    shelf_bytes: Annotated[int, Field(ge=0)] = 8_000_000_000
    """Bytes that packs may take in that folder."""
    permits: Annotated[int, Field(ge=1)] = 256
    """Requests that a worker may have under way at once; one more is refused."""
    deadline_ms: Annotated[float, Field(gt=0)] = 250.0
    """Milliseconds that a request may take where its `X-Deadline-Ms` does not say."""
    max_candidates: Annotated[int, Field(ge=1)] = 2000
    """Candidates of one request."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 2_000_000
    """Bytes of one request's body."""
    rank_keys: Keys = {}
    """Who may rank: a JSON object, name -> secret of at least 16 characters. Without any, everybody may."""
    admin_keys: Keys = {}
    """Who may change which packs are live, and rank: likewise. Without any, nobody may change them here."""
    secrets_dir: Path | None = None
    """A folder with a file for each setting that is a secret: `mdctr_rank_keys`, `mdctr_admin_keys`,
    `mdctr_force_secret`, `mdctr_store`, `mdctr_users`, `mdctr_experiments` and `mdctr_exposures_stream`. Keys
    are read again when their files change."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """After SIGTERM: how long to answer on while `/readyz` already says no."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` is console on a terminal, else JSON."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:  # noqa: ANN401 - whatever the sources gave
        known = {f"{PREFIX}{name}".upper() for name in cls.model_fields} | _NOT_OURS
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known
        )
        if unknown:
            raise ValueError(f"no such setting: {', '.join(unknown)}")
        folder = data.get("secrets_dir") if isinstance(data, dict) else None
        if not folder:
            return data
        secrets = _secrets(Path(folder))
        if twice := sorted(secrets.keys() & data.keys()):
            raise ValueError(f"a file of secrets_dir, and a variable: {', '.join(twice)}")
        return {**data, **secrets}

    @model_validator(mode="after")
    def _private(self) -> Self:
        if not self.allow_public and not self.rank_keys and not _loopback(self.host):
            raise ValueError(
                "requests are not authenticated: set MDCTR_RANK_KEYS, or MDCTR_ALLOW_PUBLIC=true, "
                "to listen on a public address"
            )
        return self

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.tls_client_ca):
            raise ValueError("MDCTR_TLS_KEY and MDCTR_TLS_CLIENT_CA need MDCTR_TLS_CERT")
        return self

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        named = [*self.rank_keys.items(), *self.admin_keys.items()]
        if len({secret.get_secret_value() for _, secret in named}) < len(named):
            raise ValueError("two keys are the same secret")
        if len({name for name, _ in named}) < len(named):
            raise ValueError("two keys have the same name")
        return self

    def again(self) -> Settings:
        """These settings, with the files of `secrets_dir` as they are now. One that is gone is as it was.

        Raises:
            SettingsError: one cannot be read, or has not what it must have; or everybody might rank now, who
                needed a key before.
        """
        try:
            there = _secrets(self.secrets_dir) if self.secrets_dir else {}
            fresh = Settings(**{name: getattr(self, name) for name in self.model_fields_set - there.keys()})
        except ValidationError as error:
            raise SettingsError(faults(error)) from None
        except ValueError as error:
            raise SettingsError(str(error)) from None
        if self.rank_keys and not fresh.rank_keys:
            raise SettingsError("without rank keys everybody might rank; restart the service for that")
        return fresh


def faults(error: ValidationError) -> str:
    """What is wrong with settings, in a line without what was given."""
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())


def _secrets(folder: Path) -> dict[str, str]:
    """What stands in a folder, by setting. Files of other names are others'.

    Raises:
        ValueError: a file has the name of no secret, or cannot be read; the text does not repeat its content.
    """
    found = {}
    try:
        for path in sorted(folder.iterdir()):
            name = path.name.lower().removeprefix(PREFIX.lower())
            if name == path.name.lower():
                continue
            if name not in _SECRET:
                raise ValueError(f"{path.name} is not a setting that may be a file of secrets_dir")
            if path.stat().st_size > _LARGEST_SECRET:
                raise ValueError(f"{path.name} has more than {_LARGEST_SECRET} bytes")
            found[name] = path.read_text().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not a text") from None
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

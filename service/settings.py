"""`Settings`: what an operator decides, from `MDCTR_*` environment variables."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.contract.edition import MOST

PREFIX = "MDCTR_"
_NOT_OURS = {"MDCTR_DATA_DIR"}
"""Variables with the prefix that other commands read."""


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
    host: str = "127.0.0.1"
    """The address to listen on."""
    allow_public: bool = False
    """Listen on an address that is not this machine's own, although no rank keys are set."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port to listen on; 0 takes a free one."""
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
    unknown_domain: Annotated[str, Field(pattern=r"^(refuse|general|domain:[a-z0-9][a-z0-9._-]{0,63})$")] = (
        "refuse"
    )
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
        return data

    @model_validator(mode="after")
    def _private(self) -> Self:
        if not self.allow_public and not self.rank_keys and not _loopback(self.host):
            raise ValueError(
                "requests are not authenticated: set MDCTR_RANK_KEYS, or MDCTR_ALLOW_PUBLIC=true, "
                "to listen on a public address"
            )
        return self

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        named = [*self.rank_keys.items(), *self.admin_keys.items()]
        if len({secret.get_secret_value() for _, secret in named}) < len(named):
            raise ValueError("two keys are the same secret")
        if len({name for name, _ in named}) < len(named):
            raise ValueError("two keys have the same name")
        return self


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

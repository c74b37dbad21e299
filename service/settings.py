"""`Settings`: what an operator decides, from `MDCTR_*` environment variables."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "MDCTR_"
_NOT_OURS = {"MDCTR_DATA_DIR"}
"""Variables with the prefix that other commands read."""


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
    host: str = "127.0.0.1"
    """The address to listen on."""
    allow_public: bool = False
    """Listen on an address that is not this machine's own, although requests are not authenticated."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port to listen on; 0 takes a free one."""
    engine: str = "ort"
    """What scores: a module of `service.engines`, or a dotted name."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads that one request's scoring may use."""
    golden_tolerance: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """How far a pack's golden rows may be from training's probabilities; a pack further off is refused."""
    unknown_domain: Literal["refuse", "general"] = "refuse"
    """What answers for a domain without a pack: a 404, or the general pack."""
    max_candidates: Annotated[int, Field(ge=1)] = 2000
    """Candidates of one request."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 2_000_000
    """Bytes of one request's body."""
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
        if not self.allow_public and not _loopback(self.host):
            raise ValueError(
                "requests are not authenticated: set MDCTR_ALLOW_PUBLIC=true to listen on a public address"
            )
        return self


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""What the admin API is asked on the wire. What it answers is `service.records`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from service.api.schemas import asked
from service.lifecycle import SHORTEST, SPARED

_Domain = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Version = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{SHORTEST},16}}$")]
_Run = Annotated[str, StringConstraints(max_length=256)]
_Domains = Annotated[list[_Domain], Field(min_length=1, max_length=10_000)]
_Versions = Annotated[dict[_Domain, _Version], Field(min_length=1, max_length=10_000)]


class Promote(BaseModel):
    """Versions to make live in one step."""

    model_config = asked(
        {
            "versions": {"books": "0123456789abcdef"},
            "run": "nightly 2024-05-01",
            "expected": {"books": "fedcba9876543210"},
        }
    )

    versions: _Versions
    """By domain, a version that was put, or a unique beginning of one."""
    run: _Run = ""
    """Where the packs came from, for the history."""
    expected: Annotated[dict[_Domain, _Version | None], Field(max_length=10_000)] = {}
    """By domain, what must be live for the step to happen; null where nothing may be."""


class Rollback(BaseModel):
    """Domains to roll back in one step."""

    model_config = asked({"domains": ["books", "films"]}, {"domains": ["books"], "to": "0123"})

    domains: _Domains
    to: _Version | None = None
    """A version, or a unique beginning of one, instead of the one before; for one domain only."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.to is not None and len(self.domains) > 1:
            raise ValueError("`to` is for one domain only")
        return self


class Retire(BaseModel):
    """Domains in which nothing shall be live."""

    model_config = asked({"domains": ["books"]})

    domains: _Domains
    run: _Run = ""
    """Why, for the history."""


class Collect(BaseModel):
    """Which packs to remove."""

    model_config = asked({"keep": 5, "dry_run": True})

    keep: Annotated[int, Field(ge=0, le=100)] = SPARED
    """Distinct versions of each domain's history that stay; what is live stays in any case."""
    unpromoted: bool = False
    """Take versions that the history does not name, too: never promoted, or too long ago."""
    domains: _Domains | None = None
    """Only these."""
    dry_run: bool = False
    """Remove nothing; answer what would be removed."""

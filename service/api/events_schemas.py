"""What `POST /v1/events` takes and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import asked
from service.contract.manifest import DOMAIN

_MOST = 1000
"""Events of one request."""
_LARGEST = 2**63 - 1

_Integer = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
_Text = Annotated[str, Field(min_length=1, max_length=256)]
Id = _Integer | _Text


class Event(BaseModel):
    """Something that happened between a user and an item."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    user: Id
    """As `user.id` in a rank request; 42 and "42" are one user."""
    domain: Annotated[str, Field(pattern=f"^{DOMAIN}$")]
    """Where it happened; not every domain there is need be served here."""
    item: Id
    kind: Literal["shown", "click"]
    time: Annotated[float, Field(ge=0, le=1e11)] | None = None
    """When it happened, in seconds since 1970; by default when it is received."""
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    """Of the answer that the item was shown from."""
    probability: Annotated[float, Field(ge=0, le=1)] | None = None
    """What the answer gave for the item. Of events that say it, clicks are compared with predictions."""


class Events(BaseModel):
    """Events, in any order."""

    model_config = asked(
        {
            "events": [
                {"user": 42, "domain": "books", "item": 7, "kind": "shown", "probability": 0.031},
                {"user": 42, "domain": "books", "item": 7, "kind": "click", "time": 1767225600.5},
            ]
        }
    )

    events: Annotated[list[Event], Field(min_length=1, max_length=_MOST)]


class Accepted(BaseModel):
    """How many events were taken."""

    accepted: int

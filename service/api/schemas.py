"""What requests and answers look like on the wire.

These models check shape. Which fields there are, and what their values may be, is the bundle's schema and
is checked by `RequestEncoder`, column by column.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

FieldName = Annotated[str, Field(max_length=64)]
_SCALAR: dict[str, Any] = {"type": ["integer", "number", "string", "null"]}
_VALUE: dict[str, Any] = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}
Value = Annotated[Any, WithJsonSchema(_VALUE)]
ItemId = Annotated[Any, WithJsonSchema({"type": ["integer", "string"]})]


def asked(*examples: dict[str, Any]) -> ConfigDict:
    """How the JSON of a request is read: nothing is converted, and nothing passed over."""
    return ConfigDict(
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [*examples]},
    )


class RankRequest(BaseModel):
    """Candidates to rank for one user, as columns."""

    model_config = asked(
        {"user": {"id": 42, "age": 31}, "context": {"hour": 20}, "ids": [7, 3, 9]},
        {"user": {}, "ids": [7, 1001], "items": {"price": [None, 12.5]}, "top_k": 1},
    )

    user: Annotated[dict[FieldName, Value], Field(max_length=1000)] = {}
    """The user's fields by name, and `id`. A field left out, or null, comes from what the service keeps of
    the user of this `id`, if it keeps anything; else it is unknown."""
    context: Annotated[dict[FieldName, Value], Field(max_length=1000)] = {}
    """The request's own fields by name, such as the hour."""
    ids: Annotated[list[ItemId], Field(min_length=1)]
    """Item ids of the candidates, all integers or all strings as in the bundle's item table."""
    items: Annotated[dict[FieldName, list[Value]], Field(max_length=1000)] = {}
    """Item fields by name, one value a candidate: a list where the field takes lists or vectors. What is
    left out, or null, comes from the item table."""
    unit: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """What experiments by user assign an arm to, in the place of `user.id`."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Answer only the best so many, best first. Without it all are answered, in the order given."""


class RankAnswer(BaseModel):
    """One click probability a candidate."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "request_id": "5f2b1c9e8d7a4b63a1f0c2d3e4f5a6b7",
                    "bundle": "plate-1a2b3c4d",
                    "domain": "books",
                    "pack": "0123456789abcdef",
                    "experiment": None,
                    "arm": None,
                    "ids": [7, 3, 9],
                    "probabilities": [0.021, 0.017, 0.134],
                }
            ]
        },
    )

    request_id: str
    """The request's `X-Request-ID`, or one made for it."""
    bundle: str
    """The model that scored."""
    domain: str
    """The domain asked for."""
    pack: str
    """The version of the pack that scored: the domain's own or, where the service is told so, the general
    one's. `GET /v1/domains` lists both."""
    experiment: str | None = None
    """The experiment that the request was in."""
    arm: str | None = None
    """Its arm in that experiment."""
    ids: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": ["integer", "string"]}})]
    """Item ids, in the request's order or, with `top_k`, best first."""
    probabilities: list[float]
    """Of a click, in the order of `ids`."""


class Refused(BaseModel):
    """What is live in the store but is not served."""

    version: str
    reason: str


class DomainState(BaseModel):
    """One domain's packs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    domain: str
    """`_general` is the general pack."""
    live: str | None
    """The version that the store says is live."""
    serving: str | None
    """The version that answers."""
    refused: Refused | None
    """Why the live version does not answer."""
    resident: bool
    """Whether it answers at once; else the next request brings it back."""
    bytes: int
    """Of the pack, if it is resident."""


class Domains(BaseModel):
    """Every domain that the bundle declares or the store names."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    bundle: str
    worker: int
    """The process that answered; each follows the store by itself."""
    domains: list[DomainState]


class Health(BaseModel):
    """The process works."""

    status: str


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    ready: bool
    draining: bool
    """The service was told to stop."""
    settled: bool
    """Everything that was live at the start was loaded, or left to be loaded when it is asked for."""
    from_shelf: bool
    """The store has not answered since the start; what served last time serves."""
    items: bool
    """No item table that was live at the start has still to be loaded."""
    domains: dict[str, bool]
    """By declared domain, whether a pack answers for it."""


class FieldInfo(BaseModel):
    """A field that a request may give."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    key: str
    """`owner.name`."""
    kind: str
    type: str
    multiple: bool
    size: int | None = None
    """Of a vector: how many numbers a value is."""


class ItemTableState(BaseModel):
    """Which item table answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    serving: str | None
    """Its version; null for the one that the bundle was made with."""
    live: str | None
    """The version that the store says is live; null for the bundle's own."""
    since: float
    """When it became visible in this process, in seconds since 1970."""
    refused: Refused | None
    """Why the live version does not answer."""


class ExperimentsState(BaseModel):
    """Which document of experiments is followed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: str | None
    """The hash of its text; null where there is none."""
    since: float | None
    """When it was taken over, in seconds since 1970."""
    refused: Refused | None
    """What is there instead and is not followed."""


class Info(BaseModel):
    """What serves."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: str
    """Of this software."""
    bundle: str
    worker: int
    """The process that answered."""
    engine: str
    unknown_domain: str
    """What answers for a domain without a pack."""
    max_candidates: int
    items: int
    """Rows of the item table."""
    item_id: str
    """What an item id is: `int` or `str`."""
    item_table: ItemTableState
    experiments: ExperimentsState | None
    """Null where the service follows none."""
    fields: list[FieldInfo]


class Fault(BaseModel):
    """One thing wrong with a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """Where in the body, as a JSON pointer (RFC 6901)."""
    detail: str


class Problem(BaseModel):
    """Why there is no answer (RFC 9457)."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:mdctr:problem:invalid-request",
                    "title": "The request breaks the schema",
                    "status": 422,
                    "detail": "/items/price/3: expected a number, got str",
                    "instance": "/v1/domains/books/rank",
                    "request_id": "5f2b1c9e8d7a4b63a1f0c2d3e4f5a6b7",
                    "errors": [{"pointer": "/items/price/3", "detail": "expected a number, got str"}],
                }
            ]
        },
    )

    type: str
    """Stable; what programs should compare."""
    title: str
    status: int
    detail: str
    instance: str
    """The path of the request."""
    request_id: str
    errors: list[Fault] = []
    """Places in the body, at most 20."""

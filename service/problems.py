"""What goes wrong, as HTTP: the one table from error to status and problem type (RFC 9457).

Under `/v2`, whose protocol has errors of its own, only the detail is answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from service.admission import RETRY_AFTER
from service.api.schemas import Fault, Problem
from service.api.tensors import Malformed
from service.contract.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    PackError,
    Place,
    StoreError,
    UnknownDomain,
    UnknownVersion,
)
from service.experiments.forced import ForceRefused

MEDIA_TYPE = "application/problem+json"
_OIP = "/v2"
"""Where errors are those of the Open Inference Protocol."""
_MOST_PLACES = 20


@dataclass(frozen=True)
class Kind:
    """One type of problem; its URI is `urn:mdctr:problem:<slug>` and never changes."""

    status: int
    slug: str
    title: str
    retry_after: int | None = None
    """Seconds after which asking again may help."""


_MALFORMED = Kind(400, "malformed-body", "The body is not JSON")
_OF_ERROR: Mapping[type[Exception], Kind] = {
    PackError: Kind(422, "pack-refused", "The pack is not one that would be served"),
    StoreError: Kind(503, "store-unavailable", "The store of packs does not answer", retry_after=5),
    UnknownVersion: Kind(404, "unknown-version", "The store has no such version"),
    Conflict: Kind(409, "conflict", "Something else is live than was expected"),
    UnknownDomain: Kind(404, "unknown-domain", "No pack answers for this domain"),
    Malformed: _MALFORMED,
    InvalidRequest: Kind(422, "invalid-request", "The request breaks the schema"),
    DeadlineExceeded: Kind(504, "deadline-exceeded", "There was no time left to answer in"),
    Overloaded: Kind(429, "overloaded", "More is asked than can be answered", retry_after=RETRY_AFTER),
    ForceRefused: Kind(403, "arm-refused", "No arm is forced by this header"),
    NotReady: Kind(503, "not-ready", "Nothing is loaded yet that could answer"),
}
_NAMED = {ForceRefused}
"""Errors that a route has only if it names them, and not their status."""
_OF_STATUS: Mapping[int, Kind] = {
    kind.status: kind
    for kind in (
        _MALFORMED,
        Kind(401, "unauthenticated", "A key is needed that the service knows"),
        Kind(403, "forbidden", "The key is not good for this"),
        Kind(404, "not-found", "There is nothing at this path"),
        Kind(405, "method-not-allowed", "This path does not take this method"),
        Kind(413, "body-too-large", "The body is too large"),
        Kind(415, "unsupported-media-type", "The body must be of another type"),
    )
}
_INTERNAL = Kind(500, "internal", "The service is at fault")


def install(app: FastAPI) -> None:
    """Answer every error of an app as a problem."""
    for error in (*_OF_ERROR, HTTPException, Exception):
        app.add_exception_handler(error, _answer)


@dataclass(frozen=True)
class Ending:
    """An error's answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def ending(error: Exception, path: str, request_id: str) -> Ending:
    """What answers a request that ended in an error: a problem, or below `/v2` that protocol's own form."""
    if isinstance(error, ValidationError):
        error = invalid(error)
    places: tuple[Place, ...] = ()
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        kind = _OF_STATUS.get(error.status_code, Kind(error.status_code, "http", "The request failed"))
        detail = error.detail
        headers |= error.headers or {}
    elif isinstance(error, tuple(_OF_ERROR)):
        kind = next(_OF_ERROR[base] for base in type(error).__mro__ if base in _OF_ERROR)
        places = error.places if isinstance(error, InvalidRequest) else ()
        detail = _detail(error, places, path)
        headers |= {"Retry-After": str(kind.retry_after)} if kind.retry_after else {}
    else:
        # What broke is in the log; the caller learns nothing of our insides.
        kind, detail = _INTERNAL, "the service's log has the cause"
    if _is_oip(path):
        body, headers["Content-Type"] = msgspec.json.encode({"error": detail}), "application/json"
    else:
        body, headers["Content-Type"] = _problem(kind, detail, path, request_id, places), MEDIA_TYPE
    return Ending(kind.status, headers, body)


def invalid(error: ValidationError) -> Exception:
    """What pydantic found wrong with a body, without repeating what stood there."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return HTTPException(400, faults[0]["msg"])
    return InvalidRequest(Place(_pointer(fault["loc"]), fault["msg"]) for fault in faults)


def documented(*endings: int | type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may end so: by status, or by error where two share a status."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        kind.status: {"description": kind.title, "content": {MEDIA_TYPE: {"schema": schema}}}
        for kind in (
            *(kind for kind in _OF_STATUS.values() if kind.status in endings),
            *(kind for error, kind in _OF_ERROR.items() if kind.status in endings and error not in _NAMED),
            *(kind for error, kind in _OF_ERROR.items() if error in endings),
        )
    }


def _answer(request: Request, error: Exception) -> Response:
    found = ending(error, request.url.path, request.state.request_id)
    if found.status == _INTERNAL.status:
        # This is sent from outside the middleware that gives every other answer its id.
        found.headers["X-Request-ID"] = request.state.request_id
    return Response(found.body, found.status, found.headers)


def _detail(error: Exception, places: Sequence[Place], path: str) -> str:
    if not places:
        return str(error)
    more = f", and {len(places) - 1} more" if len(places) > 1 else ""
    at = f"{places[0].pointer}: " if places[0].pointer or not _is_oip(path) else ""
    return f"{at}{places[0].detail}{more}"


def _is_oip(path: str) -> bool:
    return path == _OIP or path.startswith(f"{_OIP}/")


def _problem(kind: Kind, detail: str, path: str, request_id: str, places: Iterable[Place] = ()) -> bytes:
    problem = Problem(
        type=f"urn:mdctr:problem:{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=path,
        request_id=request_id,
        errors=[Fault(pointer=place.pointer, detail=place.detail) for place in [*places][:_MOST_PLACES]],
    )
    return problem.model_dump_json().encode()


def _pointer(location: Iterable[str | int]) -> str:
    steps = [step for step in location if step != "[key]"]  # pydantic's mark of a fault in a key itself
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)

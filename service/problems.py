"""What goes wrong, as HTTP: the one table from error to status and problem type (RFC 9457)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from service.api.schemas import Fault, Problem
from service.contract.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    PackError,
    Place,
    StoreError,
    UnknownDomain,
    UnknownVersion,
)

MEDIA_TYPE = "application/problem+json"
_MOST_PLACES = 20


@dataclass(frozen=True)
class Kind:
    """One type of problem; its URI is `urn:mdctr:problem:<slug>` and never changes."""

    status: int
    slug: str
    title: str
    retry_after: int | None = None
    """Seconds after which asking again may help."""


_OF_ERROR: Mapping[type[Exception], Kind] = {
    PackError: Kind(422, "pack-refused", "The pack is not one that would be served"),
    StoreError: Kind(503, "store-unavailable", "The store of packs does not answer", retry_after=5),
    UnknownVersion: Kind(404, "unknown-version", "The store has no such version"),
    Conflict: Kind(409, "conflict", "Something else is live than was expected"),
    UnknownDomain: Kind(404, "unknown-domain", "No pack answers for this domain"),
    InvalidRequest: Kind(422, "invalid-request", "The request breaks the schema"),
    DeadlineExceeded: Kind(504, "deadline-exceeded", "There was no time left to answer in"),
    NotReady: Kind(503, "not-ready", "Nothing is loaded yet that could answer"),
}
_OF_STATUS: Mapping[int, Kind] = {
    kind.status: kind
    for kind in (
        Kind(400, "malformed-body", "The body is not JSON"),
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
    for error in _OF_ERROR:
        app.add_exception_handler(error, _of_error)
    app.add_exception_handler(HTTPException, _of_status)
    app.add_exception_handler(Exception, _internal)


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
            *(kind for kind in (*_OF_STATUS.values(), *_OF_ERROR.values()) if kind.status in endings),
            *(kind for error, kind in _OF_ERROR.items() if error in endings),
        )
    }


def _of_error(request: Request, error: Exception) -> Response:
    places = error.places if isinstance(error, InvalidRequest) else ()
    detail = str(error)
    if places:
        more = f", and {len(places) - 1} more" if len(places) > 1 else ""
        detail = f"{places[0].pointer}: {places[0].detail}{more}"
    kind = next(_OF_ERROR[base] for base in type(error).__mro__ if base in _OF_ERROR)
    headers = {"Retry-After": str(kind.retry_after)} if kind.retry_after else None
    return _answer(request, kind, detail, places, headers)


def _of_status(request: Request, error: Exception) -> Response:
    error = cast("HTTPException", error)
    kind = _OF_STATUS.get(error.status_code, Kind(error.status_code, "http", "The request failed"))
    return _answer(request, kind, error.detail, headers=error.headers)


def _internal(request: Request, _: Exception) -> Response:
    # What broke is in the log; the caller learns nothing of our insides. This answer is sent from outside
    # the middleware that gives every other its id.
    headers = {"X-Request-ID": request.state.request_id}
    return _answer(request, _INTERNAL, "the service's log has the cause", headers=headers)


def _answer(
    request: Request,
    kind: Kind,
    detail: str,
    places: Iterable[Place] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    problem = Problem(
        type=f"urn:mdctr:problem:{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request.url.path,
        request_id=request.state.request_id,
        errors=[Fault(pointer=place.pointer, detail=place.detail) for place in [*places][:_MOST_PLACES]],
    )
    return Response(problem.model_dump_json(), kind.status, headers, MEDIA_TYPE)


def _pointer(location: Iterable[str | int]) -> str:
    steps = [step for step in location if step != "[key]"]  # pydantic's mark of a fault in a key itself
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)

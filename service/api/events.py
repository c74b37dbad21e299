"""`/v1/events`: what users did with what they were shown.

A click goes to its user's recent clicks. Clicks and exposures (`shown`) that name the answer they belong to
go into the exposure log, where there is one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from service import problems
from service.admission import RETRY_AFTER
from service.api import bodies
from service.api.events_schemas import Accepted, Events
from service.contract.errors import InvalidRequest, Place, StoreError
from service.runtime import Runtime
from service.security import guarded, may_rank
from service.users._protocol import Click, UserId, user_id

_AHEAD = 300.0
"""Seconds by which a caller's clock may be ahead; a click of tomorrow would stay the newest until then."""
_PATIENCE = 2.0
"""Seconds that the store may take."""
_LOST = "The store of users does not answer"

router = APIRouter(prefix="/v1/events", tags=["events"], route_class=guarded(may_rank))


def _responses() -> dict[int | str, dict[str, Any]]:
    found = problems.documented(400, 401, 413, 415, InvalidRequest, 503)
    found[404] = {**found[400], "description": "No events are kept here"}
    found[503] = {**found[503], "description": _LOST}
    return found


@router.post(
    "",
    status_code=202,
    responses=_responses(),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{Events.__name__}"}}},
        },
    },
)
async def events(request: Request) -> Accepted:
    """Tell what users were shown and what they clicked.

    A click joins the last 50 of its user, over all domains and in the order of their times. All events are
    taken or none, unless the store is lost on the way: then some may be, which the 503 does not hide. The
    same events can be sent again, since a click with its `time` is kept once. Events with a `request_id` go
    into the exposure log, if the service writes one; a click counts once there, however often it is sent.
    Where events give a `probability`, those shown and those clicked, metrics show whether a domain's clicks
    are as many as predicted; what is sent twice counts twice there.
    """
    runtime: Runtime = request.app.state.runtime
    users = runtime.users
    if users is None and runtime.exposures is None:
        raise HTTPException(404, "no events are kept here: neither MDCTR_USERS nor MDCTR_EXPOSURES is set")
    told = await bodies.parse(request, runtime.settings.max_body_bytes, Events)
    now = time.time()
    clicks = _clicks(told, now)
    if users is not None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await users.append(clicks)
        except (StoreError, TimeoutError):
            raise HTTPException(503, _LOST, {"Retry-After": str(RETRY_AFTER)}) from None
    if runtime.exposures is not None:
        runtime.exposures.tell(
            (event.request_id, str(event.item), now if event.time is None else event.time, event.kind)
            for event in told.events
            if event.request_id is not None
        )
    runtime.metrics.drift.told(
        [
            (each.domain, each.probability)
            for each in told.events
            if each.kind == "shown" and each.probability is not None
        ],
        [each.domain for each in told.events if each.kind == "click" and each.probability is not None],
    )
    for kind, count in Counter(event.kind for event in told.events).items():
        runtime.metrics.events.labels(kind).inc(count)
    return Accepted(accepted=len(told.events))


def _clicks(told: Events, now: float) -> dict[UserId, list[Click]]:
    """The clicks by user.

    Raises:
        InvalidRequest: an event is of the future, or of a user who cannot be kept.
    """
    clicks: dict[UserId, list[Click]] = {}
    places = []
    for at, event in enumerate(told.events):
        user = user_id(event.user)
        if user is None:
            places.append(Place(f"/events/{at}/user", "this cannot be a user's id"))
            continue
        when = now if event.time is None else event.time
        if when > now + _AHEAD:
            places.append(Place(f"/events/{at}/time", "this is in the future; seconds since 1970 are asked"))
        if event.kind == "click":
            clicks.setdefault(user, []).append(Click(event.domain, event.item, round(when, 3)))
    if places:
        raise InvalidRequest(places)
    return clicks

"""`/v1/domains`: ranking, and which packs rank."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from service import problems
from service.api.direct import Asked, Direct, Headers
from service.api.schemas import Domains, DomainState, RankAnswer, RankRequest, Refused
from service.contract.errors import UnknownDomain
from service.experiments.forced import ForceRefused
from service.runtime import Runtime
from service.scoring import Ranking
from service.security import guarded, may_rank

_PREFIX, _SUFFIX = "/v1/domains/", "/rank"
_SCHEMA = {"$ref": f"#/components/schemas/{RankRequest.__name__}"}
_JSON = b"application/json"

router = APIRouter(prefix="/v1/domains", tags=["rank"], route_class=guarded(may_rank))

_Name = Annotated[str, Meta(max_length=64)]
_Fields = Annotated[dict[_Name, Any], Meta(max_length=1000)]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """`RankRequest`, as it is read fast. What it refuses is read again by `RankRequest`, which says why."""

    ids: Annotated[list[Any], Meta(min_length=1)]
    user: _Fields = {}
    context: _Fields = {}
    items: Annotated[dict[_Name, list[Any]], Meta(max_length=1000)] = {}
    unit: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None


class RankRoute(Direct):
    """`POST /v1/domains/{domain}/rank`."""

    path = re.compile(r"/v1/domains/([^/?%]*)/rank")
    route = "/v1/domains/{domain}/rank"
    _decode = staticmethod(msgspec.json.Decoder(_Body).decode)
    _encode = staticmethod(msgspec.json.Encoder().encode)

    def decode(self, path: str, headers: Headers, body: bytes) -> Asked:
        """Read a request.

        Raises:
            HTTPException: it is not JSON, or is not said to be.
            InvalidRequest: it breaks the schema.
        """
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _JSON:
            raise HTTPException(415, "the body must be application/json")
        try:
            read: _Body | RankRequest = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            read = _slowly(body)
        return Asked(
            self.domain(path), read.user, read.context, read.ids, read.items, read.top_k, unit=read.unit
        )

    def encode(self, asked: Asked, ranking: Ranking, name: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """`RankAnswer` as JSON."""
        experiment, arm = asked.member
        content = self._encode(
            {
                "request_id": name,
                "bundle": asked.bundle,
                "domain": asked.domain,
                "pack": ranking.pack,
                "experiment": experiment,
                "arm": arm,
                "ids": ranking.ids,
                "probabilities": ranking.probabilities.tolist(),
            }
        )
        return [(b"content-type", _JSON)], content

    def domain(self, path: str) -> str:
        """The one that the path names."""
        return path[len(_PREFIX) : -len(_SUFFIX)]


@router.post(
    "/{domain}/rank",
    response_model=RankAnswer,
    responses=problems.documented(400, 401, ForceRefused, 404, 413, 415, 422, 429, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _SCHEMA}},
        }
    },
)
async def rank(domain: str) -> None:
    """Rank candidates: the probability that the user clicks each, in a domain.

    The answer's header `Server-Timing` says where the time went, in milliseconds. With `X-Deadline-Ms` a
    caller says how long it waits; what cannot be answered in time is refused at once, with 429.
    `X-Session-ID` names what experiments by session assign, and `X-Force-Arm` has a tester see an arm.
    """
    # `RankRoute` answers for every name that a domain can have; this is what the document shows.
    raise UnknownDomain(domain)


@router.get("", responses=problems.documented(401))
async def domains(request: Request) -> Domains:
    """Every domain that the bundle declares or the store names, and the packs behind it."""
    runtime: Runtime = request.app.state.runtime
    packs = runtime.packs
    states = []
    for domain in runtime.domains:
        serving, refusal = packs.resident.get(domain), packs.refused.get(domain)
        states.append(
            DomainState(
                domain=domain,
                live=packs.live.get(domain),
                serving=packs.good.get(domain),
                refused=Refused(version=refusal.version, reason=refusal.reason) if refusal else None,
                resident=serving is not None,
                bytes=serving.handle.nbytes if serving else 0,
            )
        )
    return Domains(bundle=runtime.bundle.manifest.bundle, worker=os.getpid(), domains=states)


def _slowly(body: bytes) -> RankRequest:
    """A body that the fast reader did not take, read by the model that says what is wrong with it."""
    try:
        return RankRequest.model_validate_json(body)
    except ValidationError as error:
        raise problems.invalid(error) from None

"""`/v1/domains`: ranking, and which packs rank."""

from __future__ import annotations

import math
import os
from time import perf_counter

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service import problems
from service.api import bodies
from service.api.schemas import Domains, DomainState, RankAnswer, RankRequest, Refused
from service.runtime import Runtime
from service.security import guarded, may_rank

router = APIRouter(prefix="/v1/domains", tags=["rank"], route_class=guarded(may_rank))

_SCHEMA = {"$ref": f"#/components/schemas/{RankRequest.__name__}"}


@router.post(
    "/{domain}/rank",
    response_model=RankAnswer,
    responses=problems.documented(400, 401, 404, 413, 415, 422, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _SCHEMA}},
        }
    },
)
async def rank(domain: str, request: Request) -> Response:
    """Rank candidates: the probability that the user clicks each, in a domain.

    The answer's header `Server-Timing` says where the time went, in milliseconds.
    """
    runtime: Runtime = request.app.state.runtime
    record = request.state.record
    record["domain"] = domain
    # Parsed here: FastAPI makes Python objects first and checks them after, which takes half as long again.
    asked = await bodies.parse(request, runtime.settings.max_body_bytes, RankRequest)
    ranking = await runtime.scorer.rank(
        domain,
        asked.user,
        asked.context,
        asked.ids,
        asked.items,
        top_k=asked.top_k,
        seconds=_seconds(request, runtime.settings.deadline_ms),
    )
    runtime.observe(ranking, len(asked.ids))
    record.update(pack=ranking.pack, candidates=len(asked.ids))
    answer = RankAnswer.model_construct(
        request_id=request.state.request_id,
        bundle=runtime.bundle.manifest.bundle,
        domain=domain,
        pack=ranking.pack,
        ids=list(ranking.ids),
        probabilities=ranking.probabilities,
    )
    content = answer.model_dump_json()
    timing = {
        "features": ranking.features_seconds,
        "engine": ranking.engine_seconds,
        "total": perf_counter() - request.state.started,
    }
    header = ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in timing.items())
    return Response(content, media_type="application/json", headers={"Server-Timing": header})


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


def _seconds(request: Request, otherwise_ms: float) -> float:
    """What is left of the time that the caller, or else the service, gives a request."""
    given = request.headers.get("x-deadline-ms")
    try:
        allowed = otherwise_ms if given is None else float(given)
    except ValueError:
        allowed = math.nan
    if not 0 < allowed < math.inf:
        raise HTTPException(400, "X-Deadline-Ms must be a number of milliseconds above 0")
    spent: float = perf_counter() - request.state.started
    return allowed / 1e3 - spent

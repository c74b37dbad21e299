"""`/v1/domains`: ranking, and which packs rank."""

from __future__ import annotations

from time import perf_counter

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from service import problems
from service.api.schemas import Domains, DomainState, RankAnswer, RankRequest, Refused
from service.runtime import Runtime

router = APIRouter(prefix="/v1/domains", tags=["rank"])

_SCHEMA = {"$ref": f"#/components/schemas/{RankRequest.__name__}"}


@router.post(
    "/{domain}/rank",
    response_model=RankAnswer,
    responses=problems.documented(400, 404, 413, 415, 422, 503),
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
    body = await _body(request, runtime.settings.max_body_bytes)
    try:
        asked = RankRequest.model_validate_json(body)
    except ValidationError as error:
        raise problems.invalid(error) from None
    ranking = runtime.scorer.rank(
        domain, asked.user, asked.context, asked.ids, asked.items, top_k=asked.top_k
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


@router.get("")
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
                serving=serving.version if serving else None,
                refused=Refused(version=refusal.version, reason=refusal.reason) if refusal else None,
                bytes=serving.handle.nbytes if serving else 0,
            )
        )
    return Domains(bundle=runtime.bundle.manifest.bundle, domains=states)


async def _body(request: Request, most: int) -> bytes:
    """The body, no more of it than is taken.

    FastAPI's own limit answers in plain text, where every other error here is a problem.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise HTTPException(415, "the body must be application/json")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise HTTPException(413, f"the body has more than {most} bytes")
        chunks.append(chunk)
    return b"".join(chunks)

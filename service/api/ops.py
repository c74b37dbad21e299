"""For operators: is it alive, is it ready, what does it measure, what is it."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.schemas import ExperimentsState, FieldInfo, Health, Info, ItemTableState, Readiness, Refused
from service.experiments.live import Live
from service.runtime import Runtime
from service.telemetry import software

router = APIRouter(tags=["operations"])

_TEXT: dict[str, Any] = {
    "description": "Prometheus text",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


@router.get("/healthz", responses={503: {"model": Health, "description": "It should be restarted"}})
async def healthz(request: Request, response: Response) -> Health:
    """Whether the process works.

    One that cannot reach its store does; one that has stopped trying does not.
    """
    runtime: Runtime = request.app.state.runtime
    if runtime.alive:
        return Health(status="alive")
    response.status_code = 503
    return Health(status="no longer follows its store")


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Send requests elsewhere"}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Whether a pack answers for every declared domain, the item table is there, and nobody said to stop.

    A store that is lost later changes nothing: the packs that are loaded serve on.
    """
    runtime: Runtime = request.app.state.runtime
    missing, draining = set(runtime.router.missing()), request.app.state.draining
    ready = runtime.ready and not draining
    response.status_code = 200 if ready else 503
    domains = {domain: domain not in missing for domain in runtime.bundle.manifest.domains}
    return Readiness(
        ready=ready,
        draining=draining,
        settled=runtime.packs.settled.is_set(),
        from_shelf=runtime.packs.from_shelf,
        items=not runtime.items.coming,
        domains=domains,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: _TEXT},
)
async def metrics(request: Request) -> Response:
    """What is measured, for Prometheus."""
    runtime: Runtime = request.app.state.runtime
    runtime.metrics.ready.set(float(runtime.ready))
    return Response(runtime.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/info")
async def info(request: Request) -> Info:
    """What serves, and which fields a request may give."""
    runtime: Runtime = request.app.state.runtime
    settings, bundle, items = runtime.settings, runtime.bundle, runtime.items
    refusal = items.refused
    return Info(
        version=software(),
        bundle=bundle.manifest.bundle,
        worker=os.getpid(),
        engine=settings.engine,
        unknown_domain=settings.unknown_domain,
        max_candidates=settings.max_candidates,
        items=len(items.serving.table),
        item_id=bundle.items.dtype,
        item_table=ItemTableState(
            serving=items.serving.version,
            live=items.live,
            since=items.since,
            refused=Refused(version=refusal.version, reason=refusal.reason) if refusal else None,
        ),
        experiments=None if runtime.experiments is None else _experiments(runtime.experiments.live),
        fields=[
            FieldInfo(
                key=field.key,
                kind=field.kind,
                type="number" if field.numeric else field.dtype,
                multiple=field.multiple is not None,
                size=field.size,
            )
            for field in bundle.schema.fields
        ],
    )


def _experiments(live: Live) -> ExperimentsState:
    refusal = live.refused
    return ExperimentsState(
        version=live.version,
        since=live.since,
        refused=Refused(version=refusal.version, reason=refusal.reason) if refusal else None,
    )

"""`create_app`: the HTTP application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import Receive, Scope, Send

from service import problems, runtime, security
from service.admission import Admission
from service.api import admin, events, oip, oip_schemas, ops, rank
from service.api.admin_schemas import Collect, Promote, Retire, Rollback
from service.api.events_schemas import Events
from service.api.oip import InferRoute
from service.api.rank import RankRoute
from service.api.requests import EveryRequest
from service.api.schemas import Problem, RankRequest
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracer

_DESCRIPTION = """Ranks candidates for a user in one of many domains: one network for all of them, and one
small pack of parameters a domain, replaced while requests flow. Errors are RFC 9457 problems."""


_READ = (RankRequest, Events, Promote, Rollback, Retire, Collect)
"""Bodies that routes parse by themselves."""


class _Application(FastAPI):
    """FastAPI, with the models that routes read or answer by themselves in its document."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request that is scored to its route; every other goes through middleware and routing."""
        if scope["type"] == "http" and scope["method"] == "POST":
            for route in self.state.direct:
                if route.path.fullmatch(scope["path"]):
                    await route(scope, receive, send)
                    return
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if not self.openapi_schema:
            document = super().openapi()
            _, models = models_json_schema(
                [*((model, "validation") for model in _READ), (Problem, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            document["components"]["schemas"].update(models["$defs"] | oip_schemas.schemas())
            security.describe(document)
        return super().openapi()


def create_app(settings: Settings) -> FastAPI:
    """An application that builds everything it needs when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with _traces(settings) as app.state.traces, runtime.run(settings) as app.state.runtime:
            state = app.state
            state.direct = [
                route(app, state.runtime, state.keys, state.admission) for route in (RankRoute, InferRoute)
            ]
            yield

    app = _Application(
        title="mdctr",
        summary="Online multi-domain click-through-rate ranking.",
        description=_DESCRIPTION,
        version="1",  # of the paths under /v1, not of the software
        lifespan=lifespan,
        # FastAPI's log records would carry what failed validation: features of a person.
        telemetry={"logs": False},
    )
    app.state.draining = False
    app.state.traces = None
    app.state.admission = Admission(settings.permits)
    app.state.direct = []
    app.state.keys = security.KeyRing(settings)
    app.add_middleware(EveryRequest)
    problems.install(app)
    app.include_router(rank.router)
    app.include_router(admin.router)
    app.include_router(events.router)
    app.include_router(ops.router)
    app.include_router(oip.router)
    return app


@asynccontextmanager
async def _traces(settings: Settings) -> AsyncGenerator[Tracer | None, None]:
    """What makes spans until the block ends, if the settings say where they go."""
    if not settings.traces:
        yield None
        return
    from service.tracing import Tracer  # noqa: PLC0415 - a service without traces has no SDK of theirs

    tracer = Tracer.to(settings.traces, settings.traces_share)
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)

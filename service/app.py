"""`create_app`: the HTTP application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service import problems, runtime, security
from service.api import admin, ops, rank
from service.api.admin_schemas import Collect, Promote, Retire, Rollback
from service.api.requests import EveryRequest
from service.api.schemas import Problem, RankRequest
from service.settings import Settings

_DESCRIPTION = """Ranks candidates for a user in one of many domains: one network for all of them, and one
small pack of parameters a domain, replaced while requests flow. Errors are RFC 9457 problems."""


_READ = (RankRequest, Promote, Rollback, Retire, Collect)
"""Bodies that routes parse by themselves."""


class _Application(FastAPI):
    """FastAPI, with the models that routes read or answer by themselves in its document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if not self.openapi_schema:
            document = super().openapi()
            _, models = models_json_schema(
                [*((model, "validation") for model in _READ), (Problem, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            document["components"]["schemas"].update(models["$defs"])
            security.describe(document)
        return super().openapi()


def create_app(settings: Settings) -> FastAPI:
    """An application that builds everything it needs when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with runtime.run(settings) as app.state.runtime:
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
    app.state.keys = security.KeyRing(settings)
    app.add_middleware(EveryRequest)
    problems.install(app)
    app.include_router(rank.router)
    app.include_router(admin.router)
    app.include_router(ops.router)
    return app

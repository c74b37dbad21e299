"""`/v1/admin`: the life cycle of packs, for who has an admin key."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service import inspection, lifecycle, problems
from service.api import bodies
from service.api.admin_schemas import Collect, Promote, Retire, Rollback
from service.contract.errors import Conflict, InvalidRequest, PackError, StoreError, UnknownVersion
from service.experiments.named import named
from service.records import Change, Contents, DomainHistory, DomainOverview, PackDifference, Put, Removed
from service.runtime import Runtime
from service.security import guarded, may_administer

router = APIRouter(prefix="/v1/admin", tags=["admin"], route_class=guarded(may_administer))

_SAFETENSORS = ("application/octet-stream", "application/vnd.safetensors", "")
_Domain = Annotated[str, Path(description="`_general` is the general pack.")]
_Start = Annotated[str | None, Query(description="A version, or a unique beginning of one.")]


def _asks(model: type[Promote | Rollback | Retire | Collect]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_FAULTS = (400, 401, 403, 413, 415, InvalidRequest, StoreError)
"""How a route that takes JSON may end."""


@router.get("/packs", responses=problems.documented(401, 403, StoreError))
async def packs(request: Request) -> list[DomainOverview]:
    """Every domain that has a pack: what is live, since when, from where, by whom."""
    return await lifecycle.overview(_runtime(request).store)


@router.get("/domains/{domain}", responses=problems.documented(401, 403, UnknownVersion, StoreError))
async def domain(domain: _Domain, request: Request) -> DomainHistory:
    """One domain's history, and the versions that are kept."""
    return await lifecycle.show(_runtime(request).store, domain)


@router.get(
    "/domains/{domain}/packs/{version}",
    responses=problems.documented(401, 403, UnknownVersion, PackError, StoreError),
)
async def pack(domain: _Domain, version: str, request: Request) -> Contents:
    """What a version holds: its tensors and how they are stored, calibration, golden rows."""
    runtime = _runtime(request)
    return await inspection.contents(runtime.store, domain, version, runtime.bundle)


@router.put(
    "/domains/{domain}/packs",
    status_code=201,
    responses=problems.documented(401, 403, 413, 415, PackError, StoreError),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The pack's file.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put(
    domain: _Domain,
    request: Request,
    response: Response,
    version: Annotated[str | None, Query(description="What the content must hash to.")] = None,
) -> Put:
    """Keep a pack, after it was checked as every service will check it. Nothing becomes live.

    Putting the same again changes nothing.
    """
    runtime = _runtime(request)
    data = await bodies.read(request, runtime.bundle.manifest.most_pack_bytes, _SAFETENSORS)
    # In a thread: scoring a large pack would hold up this loop's requests.
    await asyncio.to_thread(
        lifecycle.check,
        data,
        bundle=runtime.bundle,
        engine=runtime.engine,
        tolerance=runtime.settings.golden_tolerance,
        domain=domain,
        version=version,
    )
    kept = await lifecycle.put(runtime.store, domain, data)
    request.state.record["admin"] = {"put": {domain: kept.version}}
    response.headers["Location"] = f"{request.url.path}/{kept.version}"
    return kept


@router.post(
    "/promote",
    responses=problems.documented(*_FAULTS, UnknownVersion, Conflict),
    openapi_extra=_asks(Promote),
)
async def promote(request: Request) -> list[Change]:
    """Make versions live, all in one step or none."""
    runtime = _runtime(request)
    asked = await bodies.parse(request, runtime.settings.max_body_bytes, Promote)
    return _logged(
        request,
        "promote",
        await lifecycle.promote(
            runtime.store, asked.versions, run=asked.run, by=_name(request), expected=asked.expected
        ),
    )


@router.post(
    "/rollback",
    responses=problems.documented(*_FAULTS, UnknownVersion, Conflict),
    openapi_extra=_asks(Rollback),
)
async def rollback(request: Request) -> list[Change]:
    """Make the versions before the live ones live again, all in one step or none.

    A second rollback goes one version further back.
    """
    runtime = _runtime(request)
    asked = await bodies.parse(request, runtime.settings.max_body_bytes, Rollback)
    return _logged(
        request,
        "rollback",
        await lifecycle.rollback(runtime.store, asked.domains, to=asked.to, by=_name(request)),
    )


@router.post(
    "/retire", responses=problems.documented(*_FAULTS, UnknownVersion, Conflict), openapi_extra=_asks(Retire)
)
async def retire(request: Request) -> list[Change]:
    """Let nothing be live in domains, all in one step or none; their packs stay."""
    runtime = _runtime(request)
    asked = await bodies.parse(request, runtime.settings.max_body_bytes, Retire)
    return _logged(
        request,
        "retire",
        await lifecycle.retire(runtime.store, asked.domains, run=asked.run, by=_name(request)),
    )


@router.get(
    "/domains/{domain}/diff", responses=problems.documented(401, 403, UnknownVersion, PackError, StoreError)
)
async def diff(domain: _Domain, request: Request, a: _Start = None, b: _Start = None) -> PackDifference:
    """How two versions differ: `a`, by default where a rollback goes, and `b`, by default the live one."""
    runtime = _runtime(request)
    return await inspection.difference(
        runtime.store, domain, a, b, bundle=runtime.bundle, engine=runtime.engine
    )


@router.post("/gc", responses=problems.documented(*_FAULTS, Conflict), openapi_extra=_asks(Collect))
async def gc(request: Request) -> list[Removed]:
    """Remove packs that nothing needs, and answer which.

    What is live stays, and so do the last versions of each history, those that experiments name, and versions
    that no history names unless they are asked for.
    """
    runtime = _runtime(request)
    asked = await bodies.parse(request, runtime.settings.max_body_bytes, Collect)
    removed = await lifecycle.gc(
        runtime.store,
        keep=asked.keep,
        unpromoted=asked.unpromoted,
        domains=asked.domains,
        needed=await named(runtime.settings.experiments),
        dry_run=asked.dry_run,
    )
    if not asked.dry_run:
        request.state.record["admin"] = {"gc": len(removed)}
    return removed


def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


def _name(request: Request) -> str:
    name: str = request.state.record["key"]
    return name


def _logged(request: Request, what: str, changes: list[Change]) -> list[Change]:
    """The changes, which go into the answer's log line, too."""
    request.state.record["admin"] = {what: {change.domain: change.after for change in changes}}
    return changes

"""`/v2`: the Open Inference Protocol, with its binary tensor data extension, over the same scorer.

The model is the bundle, under the bundle's name; its one version is the hash in the bundle's id. The domain
is a parameter of the request.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service.api import inference, ops
from service.api.direct import Answer, Asked, Direct, Headers
from service.api.oip_schemas import (
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from service.contract.bundle import Bundle
from service.contract.errors import InvalidRequest
from service.scoring import Ranking

HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = HEADER_LENGTH.lower().encode()
_MEDIA = {b"application/json", b"application/octet-stream", b""}
"""Types of a request's body; clients of the protocol do not agree on one, and some send none."""
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceError"}}}
_BINARY = {
    "application/octet-stream": {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": f"The JSON, {HEADER_LENGTH} bytes of it, and then the bytes of the tensors.",
        }
    }
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "There is no such model", "content": _ERROR}
}

router = APIRouter(prefix="/v2", tags=["open inference protocol"])


@router.get("/", include_in_schema=False)
@router.get("")
async def server(request: Request) -> ServerMetadata:
    """What server this is, and which extensions of the protocol it speaks."""
    info = await ops.info(request)
    return ServerMetadata(name="mdctr", version=info.version, extensions=["binary_tensor_data", "parameters"])


@router.get("/health/live", responses={503: {"model": ServerLive, "description": "It should be restarted"}})
async def live(request: Request, response: Response) -> ServerLive:
    """Whether the process works; the same as `/healthz`."""
    await ops.healthz(request, response)
    return ServerLive(live=response.status_code != 503)


@router.get(
    "/health/ready", responses={503: {"model": ServerReady, "description": "Send requests elsewhere"}}
)
async def ready(request: Request, response: Response) -> ServerReady:
    """Whether requests should be sent here; the same as `/readyz`."""
    return ServerReady(ready=(await ops.readyz(request, response)).ready)


@router.get("/models/{model}", responses=_REFUSED)
async def metadata(model: str, request: Request) -> ModelMetadata:
    """The model's tensors. Of the inputs only `ids` is required."""
    return _metadata(request, model)


@router.get("/models/{model}/versions/{version}", responses=_REFUSED)
async def metadata_of_version(model: str, version: str, request: Request) -> ModelMetadata:
    """The same of the version that serves; there is no other."""
    return _metadata(request, model, version)


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": ModelReady, "description": "Send requests elsewhere"},
    **_REFUSED,
}


@router.get("/models/{model}/ready", responses=_NOT_READY)
async def model_ready(model: str, request: Request, response: Response) -> ModelReady:
    """Whether the model answers; the same as the server's."""
    return await _ready(request, response, model)


@router.get("/models/{model}/versions/{version}/ready", responses=_NOT_READY)
async def version_ready(model: str, version: str, request: Request, response: Response) -> ModelReady:
    """Whether the version answers; the same as the server's."""
    return await _ready(request, response, model, version)


_INFER: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {
            "description": "Probabilities; with bytes in it if an output was asked for so",
            "headers": {
                HEADER_LENGTH: {
                    "description": "Bytes of the body that are JSON, if others follow.",
                    "schema": {"type": "integer"},
                }
            },
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferenceResponse"}},
                **_BINARY,
            },
        },
        **{
            status: {"description": description, "content": _ERROR}
            for status, description in (
                (400, "The body is not JSON, or has not the bytes that it announces"),
                (401, "A key is needed that the service knows"),
                (404, "There is no such model, or no pack answers for the domain"),
                (413, "The body is too large"),
                (415, "The body is of another type, or compressed"),
                (422, "The tensors are not what the model takes"),
                (429, "More is asked than can be answered"),
                (503, "Nothing is loaded yet that could answer"),
                (504, "There was no time left to answer in"),
            )
        },
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "required": False,
                "description": "Bytes of the body that are JSON; by default all.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
                **_BINARY,
            },
        },
        "security": [{}, {"key": []}, {"bearer": []}],
    },
}


@router.post("/models/{model}/infer", **_INFER)
async def infer(model: str, request: Request) -> Response:
    """Score candidates: the probability that the user clicks each, in a domain.

    The answer's header `Server-Timing` says where the time went, in milliseconds. With `X-Deadline-Ms` a
    caller says how long it waits; what cannot be answered in time is refused at once, with 429.
    """
    del model
    # `InferRoute` answers; this is what the document shows, and what names with an escape in them come to.
    raise _no_model(request.app.state.runtime.bundle)


@router.post("/models/{model}/versions/{version}/infer", **_INFER)
async def infer_by_version(model: str, version: str, request: Request) -> Response:
    """The same by the version that serves; another is a 404."""
    del model, version
    raise _no_model(request.app.state.runtime.bundle)


class InferRoute(Direct):
    """`POST /v2/models/{model}[/versions/{version}]/infer`."""

    path = re.compile(r"/v2/models/([^/?%]+)(?:/versions/([^/?%]+))?/infer")
    route = "/v2/models/{model}/infer"

    def decode(self, path: str, headers: Headers, body: bytes) -> Asked:
        """Read a request.

        Raises:
            Malformed: its body cannot be taken apart.
            InvalidRequest: something in it is not what the protocol, or the model, takes.
            HTTPException: it asks for another model, or its body is not of a type that is taken.
        """
        found = self.path.fullmatch(path)
        if found is not None:
            _check(self._runtime.bundle, *found.groups())
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise HTTPException(415, "the body must not be compressed", {"Accept-Encoding": "identity"})
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() not in _MEDIA:
            raise HTTPException(415, "the body must be application/json or application/octet-stream")
        length = headers.get(_LENGTH)
        asked = inference.read(
            body, None if length is None else length.decode("latin-1"), self._runtime.bundle
        )
        return Asked(
            asked.domain,
            asked.user,
            asked.context,
            asked.ids,
            asked.items,
            asked.top_k,
            options=asked,
            unit=asked.unit,
        )

    def encode(self, asked: Asked, ranking: Ranking, name: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """`InferenceResponse` as JSON, and the bytes of tensors after it if they were asked for so."""
        del name
        experiment, arm = asked.member
        content, length = inference.write(
            asked.options,
            ranking,
            self._runtime.bundle,
            by=asked.bundle,
            experiment=experiment,
            arm=arm,
        )
        if length is None:
            return [(b"content-type", b"application/json")], content
        return [(b"content-type", b"application/octet-stream"), (_LENGTH, str(length).encode())], content

    def failed(self, error: Exception, path: str, name: str) -> Answer:
        """`InferenceError`, which names tensors."""
        if isinstance(error, InvalidRequest):
            error = inference.in_tensors(error)
        return super().failed(error, path, name)


def _metadata(request: Request, model: str, version: str | None = None) -> ModelMetadata:
    bundle: Bundle = request.app.state.runtime.bundle
    _check(bundle, model, version)
    return ModelMetadata(
        name=model,
        versions=[inference.version(bundle)],
        platform="onnx_onnxv1",
        inputs=[TensorMetadata(**tensor._asdict()) for tensor in inference.inputs(bundle)],
        outputs=[TensorMetadata(**tensor._asdict()) for tensor in inference.outputs(bundle)],
    )


async def _ready(request: Request, response: Response, model: str, version: str | None = None) -> ModelReady:
    _check(request.app.state.runtime.bundle, model, version)
    return ModelReady(name=model, ready=(await ops.readyz(request, response)).ready)


def _check(bundle: Bundle, model: str, version: str | None) -> None:
    if model != bundle.manifest.name:
        raise _no_model(bundle)
    only = inference.version(bundle)
    if version not in {None, only}:
        raise HTTPException(404, f"no such version of {model}; {only} is served")


def _no_model(bundle: Bundle) -> HTTPException:
    return HTTPException(404, f"no such model; {bundle.manifest.name} is served")

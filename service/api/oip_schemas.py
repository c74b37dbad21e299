"""The objects of the Open Inference Protocol, as they stand on the wire.

The structs are read and written as they are, and describe themselves to the OpenAPI document; what only
FastAPI answers is a model. Which inputs there are, and what they take, is the bundle's schema.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from pydantic import BaseModel, ConfigDict

from service.api.tensors import BYTES, NUMBERS

LARGEST = 2**63 - 1
"""Of what is INT64."""
_EXAMPLE = {
    "id": "42",
    "parameters": {"domain": "books"},
    "inputs": [
        {"name": "user.age", "datatype": "FP32", "shape": [1], "data": [31]},
        {"name": "ids", "datatype": "INT64", "shape": [3], "data": [7, 3, 9]},
    ],
    "outputs": [{"name": "probabilities"}],
}

_Size = Annotated[int, Meta(ge=0, le=LARGEST)]
_Datatype = Annotated[
    str,
    Meta(description=f"One of {', '.join((*NUMBERS, BYTES))}.", extra_json_schema={"examples": ["INT64"]}),
]
_Data = Annotated[
    list[Any] | None,
    Meta(description="The elements in row-major order, flat or nested. FP16 cannot travel so."),
]


class TensorParameters(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a tensor travels."""

    binary_data_size: Annotated[
        _Size | None,
        Meta(description="The tensor is so many bytes, after the JSON and those of the tensors before it."),
    ] = None


class InferenceInput(Struct, frozen=True, forbid_unknown_fields=True):
    """An input tensor."""

    name: Annotated[str, Meta(description="`ids`, or a field's key.")]
    datatype: _Datatype
    shape: Annotated[list[_Size], Meta(min_length=1, max_length=2)]
    parameters: TensorParameters | None = None
    data: _Data = None


class OutputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """How an output is to travel."""

    binary_data: Annotated[
        bool | None, Meta(description="As bytes; by default as `binary_data_output` says.")
    ] = None


class RequestedOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """An output that is asked for."""

    name: Annotated[str, Meta(description="`probabilities` or `ids`.")]
    parameters: OutputParameters | None = None


class RequestParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """What the protocol has no place for."""

    domain: Annotated[str, Meta(max_length=64, description="Whose pack scores.")]
    top_k: Annotated[
        Annotated[int, Meta(ge=1, le=LARGEST)] | None, Meta(description="Answer only the best so many.")
    ] = None
    unit: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(description="What an experiment assigns an arm to."),
    ] = None
    binary_data_output: Annotated[bool, Meta(description="All outputs as bytes.")] = False


class InferenceRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Candidates to score for one user in one domain, as tensors."""

    inputs: Annotated[list[InferenceInput], Meta(max_length=1000)]
    parameters: RequestParameters
    id: Annotated[str | None, Meta(description="Is answered.")] = None
    outputs: Annotated[
        list[RequestedOutput] | None,
        Meta(description="By default `probabilities`, and with `top_k` `ids`, too."),
    ] = None
    model_name: Annotated[str | None, Meta(description="The path's, if it is given.")] = None


class InferenceOutput(Struct, omit_defaults=True):
    """An output tensor."""

    name: str
    datatype: str
    shape: list[int]
    parameters: TensorParameters | None = None
    data: list[Any] | None = None


class InferenceResponse(Struct, omit_defaults=True):
    """One click probability a candidate."""

    model_name: str
    model_version: str
    outputs: list[InferenceOutput]
    parameters: Annotated[
        dict[str, str],
        Meta(
            description="`domain`, `bundle`, `pack`; and `experiment` and `arm` of a request that is in one."
        ),
    ]
    id: str | None = None


class InferenceError(Struct):
    """Why there is no answer."""

    error: str


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Whether the process works."""

    live: bool


class ServerReady(BaseModel):
    """Whether requests should be sent here."""

    ready: bool


class ModelReady(BaseModel):
    """Whether the model answers."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """A tensor of the model."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    datatype: str
    shape: list[int]
    """-1 is any size."""


class ModelMetadata(BaseModel):
    """The model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def schemas() -> dict[str, Any]:
    """The JSON schemas of request, answer and error, by name."""
    _, models = msgspec.json.schema_components(
        (InferenceRequest, InferenceResponse, InferenceError), ref_template="#/components/schemas/{name}"
    )
    models["InferenceRequest"]["examples"] = [_EXAMPLE]
    return models

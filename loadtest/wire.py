"""Requests of the Open Inference Protocol v2 with its binary tensor extension, and their answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.sender import request
from loadtest.traffic import Asked
from service.contract.bundle import Bundle

LENGTH = "Inference-Header-Content-Length"
"""The header that says where the JSON ends and tensors begin."""


def http(bundle: Bundle, asked: Asked) -> bytes:
    """The whole HTTP request: ids as a binary INT64 tensor, the request's fields as JSON tensors."""
    ids = np.asarray(asked.ids, "<i8").tobytes()
    inputs: list[dict[str, Any]] = [
        {
            "name": "ids",
            "shape": [len(asked.ids)],
            "datatype": "INT64",
            "parameters": {"binary_data_size": len(ids)},
        }
    ]
    for slot in bundle.schema.scope("request"):
        field = slot.field
        value = (asked.user if field.owner == "user" else asked.context).get(field.name)
        if value is not None:
            data = value if isinstance(value, list) else [value]
            kind = "FP32" if field.numeric else "INT64" if field.dtype == "int" else "BYTES"
            inputs.append({"name": field.key, "shape": [len(data)], "datatype": kind, "data": data})
    head = {
        "inputs": inputs,
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        "parameters": {"domain": asked.domain},
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    path = f"/v2/models/{bundle.manifest.name}/infer"
    kind = "Content-Type: application/octet-stream"
    return request("POST", path, text + ids, kind, f"{LENGTH}: {len(text)}")


def probabilities(body: bytes) -> npt.NDArray[np.float32]:
    """(B,) of an answer whose only binary output they are."""
    head = json.JSONDecoder().raw_decode(body.decode("latin-1"))[0]
    (output,) = (each for each in head["outputs"] if each["name"] == "probabilities")
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(body[-size:], "<f4")

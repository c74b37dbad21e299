"""Triton's own HTTP client, unchanged, against a service: `python triton_client.py HOST:PORT MODEL VERSION`.

It runs in a process of its own, because it imports gevent. What it found goes to stdout as JSON.
"""

import json
import sys
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

INPUTS = {
    "user.id": np.array([2], np.int32),
    "user.genres": np.array([["drama", "crime", ""]], object),
    "user.age": np.array([45], np.float32),
    "context.hour": np.array([20], np.uint8),
    "ids": np.array([10, 11, 99, 12345]),
    "item.price": np.array([5, 1.5, 2, 7], np.float16),
    "item.brand": np.array(["acme", "zeta", "acme", "new"], object),
    "item.tags": np.array([["old", ""], ["new", "old"], ["new", "old"], ["", ""]], object),
}


def tensors(given, binary):
    """Arrays as the client's inputs; half floats as single ones in JSON, which has no other."""
    found = []
    for name, array in given.items():
        values = array.astype(np.float32) if not binary and array.dtype == np.float16 else array
        tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        found.append(tensor.set_data_from_numpy(values, binary_data=binary))
    return found


def plain(array):
    """An array as JSON has it."""
    return [each.decode() if isinstance(each, bytes) else each for each in array.tolist()]


def main(url, model, version):
    """Ask for everything that the client can ask for here."""
    client = InferenceServerClient(url)
    found: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, version),
        "no_model_ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(model),
        "version": client.get_model_metadata(model, version),
        "answers": {},
    }
    ids = INPUTS["ids"]
    if found["model"]["inputs"][0]["datatype"] == "BYTES":
        ids = np.array([str(each) for each in ids.tolist()], object)
    given = {**INPUTS, "ids": ids}
    domain = {"domain": "books"}
    for binary in (True, False):
        whole = client.infer(model, tensors(given, binary), parameters=domain, request_id="42")
        asked = [InferRequestedOutput(name, binary_data=binary) for name in ("ids", "probabilities")]
        both = client.infer(model, tensors(given, binary), version, outputs=asked, parameters=domain)
        best = client.infer(model, tensors(given, binary), parameters={**domain, "top_k": 2})
        alone = client.infer(
            model, tensors({"ids": ids[:1]}, binary), parameters=domain, headers={"X-Deadline-Ms": "900"}
        )
        found["answers"][str(binary)] = {
            "whole": plain(whole.as_numpy("probabilities")),
            "type": str(whole.as_numpy("probabilities").dtype),
            "response": whole.get_response(),
            "both": [plain(both.as_numpy(name)) for name in ("ids", "probabilities")],
            "order": [output["name"] for output in both.get_response()["outputs"]],
            "best": [plain(best.as_numpy(name)) for name in ("ids", "probabilities")],
            "alone": plain(alone.as_numpy("probabilities")),
        }
    pending = [client.async_infer(model, tensors(given, True), parameters=domain) for _ in range(4)]
    found["async"] = [plain(each.get_result().as_numpy("probabilities")) for each in pending]
    refusals: dict[str, Any] = {
        "domain": {"inputs": tensors(given, True), "parameters": {"domain": "cooking"}},
        "input": {"inputs": tensors({**given, "user.height": ids}, True), "parameters": domain},
        "compressed": {
            "inputs": tensors(given, True),
            "parameters": domain,
            "request_compression_algorithm": "gzip",
        },
        "priority": {"inputs": tensors(given, True), "parameters": domain, "priority": 1},
        "timeout": {"inputs": tensors(given, True), "parameters": domain, "timeout": 1000},
    }
    found["refused"] = {}
    for name, asked in refusals.items():
        try:
            client.infer(model, **asked)
        except InferenceServerException as error:
            found["refused"][name] = [error.status(), error.message()]
    accepted = client.infer(
        model, tensors(given, True), parameters=domain, response_compression_algorithm="gzip"
    )
    found["uncompressed"] = plain(accepted.as_numpy("probabilities"))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])

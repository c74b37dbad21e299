"""The service that one would write first, as the yardstick of ours.

FastAPI with a pydantic model, an object a candidate with all of its fields, the user's repeated in each,
and one graph over whole rows (`loadtest.flat`). It has every advantage that costs its author no thought: the
caller sends row numbers of the fused table, so nothing is encoded; rows are typed dictionaries, and the body
goes to pydantic as it came, which together take a third of the time of FastAPI's usual way; ONNX Runtime has
one thread, as fits one core; the endpoint is a coroutine, which spares a thread's hand-over; no access log is
written; nothing is checked, counted or swapped.

    python -m loadtest.naive FLAT.onnx PORT [SCALE SHIFT]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel
from typing_extensions import TypedDict

from loadtest.sender import request
from loadtest.traffic import JSON, Asked
from service.contract.bundle import Bundle

PATH = "/rank"


class Row(TypedDict):
    """One candidate, with all that is known of it and of the request."""

    user_id: int
    user_age: int
    user_gender: int
    user_country: int
    context_hour: int
    context_weekday: int
    context_device: int
    context_page: int
    item_id: int
    item_category: int
    item_brand: int
    item_shop: int
    item_colour: int
    item_size: int
    item_age_days: int


class Rows(BaseModel):
    """The candidates of a request."""

    rows: list[Row]


class Probabilities(BaseModel):
    """One a candidate."""

    probabilities: list[float]


def create_app(graph: Path, scale: float = 1.0, shift: float = 0.0) -> FastAPI:
    """The application.

    Args:
        graph: over `ids` (B, 15) int32, to `logit` (B,).
        scale: the calibration's a.
        shift: and its b.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    app = FastAPI(telemetry={"logs": False})

    @app.post(PATH)
    async def rank(request: Request) -> Probabilities:
        asked = Rows.model_validate_json(await request.body())
        ids = np.array([[*row.values()] for row in asked.rows], np.int32)
        (logit,) = session.run(["logit"], {"ids": ids})
        return Probabilities(probabilities=(1 / (1 + np.exp(-(scale * logit + shift)))).tolist())

    return app


def rows(bundle: Bundle, asked: Asked) -> npt.NDArray[np.int32]:
    """(B, F) rows of the fused table, the request's fields first: what the flat graph takes."""
    schema, items = bundle.schema, bundle.items
    given: dict[str, Sequence[Any]] = {}
    for owner, values in (("user", asked.user), ("context", asked.context)):
        given |= {f"{owner}.{name}": [value] for name, value in values.items()}
    mine = schema.encode("request", given, 1).ids
    theirs = items.inputs.take(items.rows(asked.ids)).ids
    return np.concatenate([np.repeat(mine, len(theirs), 0), theirs], 1)


def body(ids: npt.NDArray[np.int32]) -> bytes:
    """Whole rows (B, F) as this service takes them."""
    named: list[Mapping[str, int]] = [
        dict(zip(Row.__annotations__, row, strict=True)) for row in ids.tolist()
    ]
    return json.dumps({"rows": named}, separators=(",", ":")).encode()


def http(bundle: Bundle, asked: Asked) -> bytes:
    """The whole HTTP request."""
    return request("POST", PATH, body(rows(bundle, asked)), JSON)


def main(graph: str, port: str, scale: str = "1", shift: str = "0") -> None:
    """Serve on the loopback, in one process, as uvicorn does by default."""
    app = create_app(Path(graph), float(scale), float(shift))
    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

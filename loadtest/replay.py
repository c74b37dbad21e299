"""Prepared rows as requests: one for every user and context, with all of their items as candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from service.contract.schema import FeatureSchema


@dataclass(frozen=True)
class Request:
    """One request, and which rows its candidates are."""

    path: str
    body: bytes
    rows: npt.NDArray[np.int64]
    """Positions in the frame that it was made from, in the order of its candidates."""


def requests(frame: pl.DataFrame, schema: FeatureSchema, domain: str, candidates: int) -> Iterator[Request]:
    """Every row of `frame` once, as a candidate of some request.

    Args:
        frame: rows of one domain, as prepared.
        schema: tells which columns make a request.
        domain: whose route to take.
        candidates: at most so many a request.
    """
    keys = [slot.field.key for slot in schema.scope("request")]
    numbered = frame.with_row_index("at")
    grouped = numbered.group_by(keys, maintain_order=True).agg("at", "item.id")
    for row in grouped.iter_rows(named=True):
        body: dict[str, Any] = {"user": {}, "context": {}}
        for key in keys:
            owner, name = key.split(".")
            body[owner][name] = row[key]
        for start in range(0, len(row["at"]), candidates):
            part = slice(start, start + candidates)
            body["ids"] = row["item.id"][part]
            yield Request(
                f"/v1/domains/{domain}/rank", json.dumps(body).encode(), np.asarray(row["at"][part], np.int64)
            )

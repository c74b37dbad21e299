"""A bundle's graphs of several requests, as files: in float32 and in float16, by fields and by rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx

from export import float16, halves
from export.condense import condense
from export.graph import save_beside
from export.many import batch
from service.contract.manifest import ManyGraphs

DType = Literal["float32", "float16"]
DTYPES: tuple[DType, ...] = ("float32", "float16")


def write(folded: onnx.ModelProto, folder: Path, *, rows: bool) -> dict[DType, ManyGraphs]:
    """Put the graphs into a bundle's folder.

    Args:
        folded: the bundle's graph as `graph.write` gives it; its weights lie in the folder.
        folder: the bundle's.
        rows: whether the bundle has item halves.

    Returns:
        The manifest's entry.

    Raises:
        BundleError: an operator has no rule, or a weight is beyond float16's numbers.
    """
    split = halves.split(folded) if rows else None
    made: dict[DType, ManyGraphs] = {}
    for dtype in DTYPES:
        fields = write_one(folded, folder, f"many.{dtype}.onnx", dtype)
        by_rows = None if split is None else write_one(split.rows, folder, f"many.rows.{dtype}.onnx", dtype)
        made[dtype] = ManyGraphs(fields=fields, rows=by_rows)
    return made


def write_one(proto: onnx.ModelProto, folder: Path, name: str, dtype: DType) -> str:
    """Put one graph of many requests into a folder in which its weights lie; its name there."""
    made = batch(proto)
    if dtype == "float16":
        made = batch(proto, float16.only_half(made))
    condense(made)
    if dtype == "float16":
        float16.convert(made, folder)
    save_beside(made, folder / name)
    return name

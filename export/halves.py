"""What a graph computes from an item alone, computed once for each row of the item table.

Most of a graph's item-only work does not depend on the pack either: field vectors, their sums, the item's
half of the first layer. `split` cuts a graph where such tensors meet others. One part makes tables from the
items' fields, the other reads rows of the tables instead of fields. It works on operators and knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.folding import Graph, fuse, write_back
from export.graph import save_beside
from export.servable import ITEM
from service.contract.bundle import ITEMS
from service.contract.items import ItemTable
from service.contract.manifest import ITEM_ROWS, ItemHalves

ROWS = "rows.onnx"
MAKER = "halves.onnx"
TABLES = "items."
"""With what the names of table inputs begin."""
MOST = 2_000_000_000
"""Bytes of tables that a bundle has without being asked: every worker maps them, and wants them in memory."""
_ROWS = 4096
"""Items at a time: what they need in between stays small."""


@dataclass(frozen=True)
class Split:
    """Two graphs in the place of one."""

    maker: onnx.ModelProto
    """From items' fields to what is worth keeping of them, an output a table."""
    rows: onnx.ModelProto
    """From rows of the tables, instead of items' fields, to logits."""
    row_bytes: int
    """Bytes of an item in the tables that `maker` makes."""


def write(proto: onnx.ModelProto, items: ItemTable, folder: Path, most: int | None) -> ItemHalves | None:
    """Put the two graphs and the tables into a bundle's folder.

    Args:
        proto: the bundle's graph as `graph.write` gives it; its weights lie in the folder.
        items: the bundle's item table.
        folder: the bundle's.
        most: bytes that the tables may have; None for any.

    Returns:
        The manifest's entry; None if the tables would be larger, or nothing can be computed in advance.
    """
    found = split(proto)
    if found is None or (most is not None and found.row_bytes * len(items.inputs) > most):
        return None
    for part, name in ((found.rows, ROWS), (found.maker, MAKER)):
        fuse(part)
        save_beside(part, folder / name)
    tables = {
        value.name: f"{ITEMS}/{value.name.removeprefix(TABLES)}.npy"
        for value in found.rows.graph.input
        if value.name.startswith(TABLES)
    }
    make(folder / MAKER, items, {name: folder / file for name, file in tables.items()})
    return ItemHalves(graph=ROWS, maker=MAKER, tables=tables)


def split(proto: onnx.ModelProto) -> Split | None:
    """Cut a graph; None where nothing that the body's weights decide depends on items alone.

    Args:
        proto: a graph that was folded and not fused. It may refer to weights in a file: both parts do, too.
    """
    graph = Graph(proto)
    of_items, weighed = _of_items(graph)
    rest = [node for node in graph.nodes if not of_items.issuperset(node.output)]
    rest = [*_parts(graph, rest), *rest]
    read = {name for node in rest for name in node.input} | set(graph.outputs)
    kept = of_items & read - {name for node in rest for name in node.output}
    made = [name for node in graph.nodes for name in node.output if name in kept]
    if not weighed.intersection(made):
        return None
    tables = {name: f"{TABLES}half{at}" for at, name in enumerate(made)}
    maker = _maker(proto, graph, tables)
    tables |= {name: name.replace("item.", TABLES) for name in ITEM if name in read}
    return Split(maker, _rows(proto, graph, tables, rest), sum(map(_bytes, maker.graph.output)))


def make(graph: Path, items: ItemTable, tables: Mapping[str, Path]) -> None:
    """Run the items' graph over a table of items, and write what it gives.

    Args:
        graph: where `Split.maker` was written.
        items: the table.
        tables: the file of each table, by name.
    """
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    wanted = [each.name for each in session.get_inputs()]
    paths = [tables[each.name] for each in session.get_outputs()]
    count = len(items.inputs)
    files: list[npt.NDArray[Any]] = []
    for start in range(0, count, _ROWS):
        part = items.inputs.take(slice(start, start + _ROWS))
        arrays = {"item.ids": part.ids, "item.numbers": part.numbers}
        found = session.run(None, {name: np.ascontiguousarray(arrays[name]) for name in wanted})
        if not files:
            files = [
                np.lib.format.open_memmap(path, "w+", each.dtype, (count, *each.shape[1:]))
                for path, each in zip(paths, found, strict=True)
            ]
        for file, each in zip(files, found, strict=True):
            file[start : start + len(part)] = each


def _of_items(graph: Graph) -> tuple[set[str], set[str]]:
    """Tensors that items alone decide, with a row for each; of them, those that the weights decide, too."""
    of_items, weighed, free = set(ITEM), set[str](), set(graph.constants)
    weights = {name for name in free if graph.types[name] == TensorProto.FLOAT and graph.shapes[name]}
    for node in graph.nodes:
        read = {name for name in node.input if name}
        if read <= free:
            free.update(node.output)
        elif read <= of_items | free and all(map(graph.many, node.output)):
            of_items.update(node.output)
            if not read.isdisjoint(weighed | weights):
                weighed.update(node.output)
    return of_items, weighed


def _parts(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Columns of items' fields that nodes read: cut out again, since tables of them would say it twice."""
    read = {name for node in nodes for name in node.input}
    slices = [node for node in graph.nodes if node.op_type == "Slice" and node.input[0] in ITEM]
    return [node for node in slices if read.intersection(node.output)]


def _maker(proto: onnx.ModelProto, whole: Graph, tables: Mapping[str, str]) -> onnx.ModelProto:
    part = _copy(proto)
    part.graph.ClearField("output")
    part.graph.output.extend(_value(whole, name, table, "B") for name, table in tables.items())
    part.graph.node.extend(helper.make_node("Identity", [name], [table]) for name, table in tables.items())
    graph = Graph(part)
    write_back(graph, part)
    inputs = [value for value in proto.graph.input if graph.readers[value.name]]
    part.graph.ClearField("input")
    part.graph.input.extend(inputs)
    return part


def _rows(
    proto: onnx.ModelProto, whole: Graph, tables: Mapping[str, str], rest: Sequence[onnx.NodeProto]
) -> onnx.ModelProto:
    part = _copy(proto)
    part.graph.ClearField("input")
    part.graph.input.extend(value for value in proto.graph.input if value.name not in ITEM)
    part.graph.input.append(helper.make_tensor_value_info(ITEM_ROWS, TensorProto.INT32, ["B"]))
    part.graph.input.extend(_value(whole, name, table, "N") for name, table in tables.items())
    part.graph.ClearField("node")
    part.graph.node.extend(
        helper.make_node("Gather", [table, ITEM_ROWS], [name], axis=0) for name, table in tables.items()
    )
    part.graph.node.extend(rest)
    write_back(Graph(part), part)
    return part


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    return part


def _value(graph: Graph, name: str, called: str, first: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(called, graph.types[name], [first, *graph.shapes[name][1:]])


def _bytes(value: onnx.ValueInfoProto) -> int:
    """Of a row."""
    kind = value.type.tensor_type
    size = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return int(math.prod((each.dim_value for each in kind.shape.dim[1:]), start=size))

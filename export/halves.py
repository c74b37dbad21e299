"""What a graph computes from an item alone, computed once for each row of the item table.

Most of a graph's item-only work does not depend on the pack either: field vectors, their sums, the item's half
of the first layer. `split` cuts a graph where such tensors meet others. One part makes the tables from items'
fields, the other reads rows of the tables instead of fields. It works on operators and knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.folding import Graph, write_back
from export.servable import ITEM
from service.contract.items import ItemTable
from service.contract.manifest import ITEM_ROWS

_ROWS = 4096
"""Items at a time: what they need in between stays small."""


@dataclass(frozen=True)
class Split:
    """Two graphs in the place of one."""

    items: onnx.ModelProto
    """From items' fields to what is worth keeping of them, one output a table."""
    rows: onnx.ModelProto
    """From rows of the tables, instead of items' fields, to logits."""
    tables: tuple[str, ...]
    """The table inputs of `rows` that the outputs of `items` fill, in order."""
    fields: tuple[str, ...]
    """Those that are the item table's own arrays: whatever the pack's tensors are looked up by."""


def split(proto: onnx.ModelProto) -> Split | None:
    """Cut a graph; None where there is nothing to compute in advance.

    Args:
        proto: a graph that was folded and not fused. It may refer to weights in a file: both parts do, too.
    """
    graph = Graph(proto)
    of_items = _of_items(graph)
    cut = [
        name
        for name in (*ITEM, *(name for node in graph.nodes for name in node.output))
        if name in of_items and any(_reads(node, name) for node in graph.nodes if not _is_of(node, of_items))
    ]
    computed = [name for name in cut if name not in ITEM]
    if not computed:
        return None
    tables = {name: f"items.half{at}" for at, name in enumerate(computed)}
    tables |= {name: name.replace("item.", "items.") for name in cut if name in ITEM}
    return Split(
        _making(proto, graph, computed, of_items),
        _reading(proto, graph, tables, of_items),
        tuple(tables[name] for name in computed),
        tuple(tables[name] for name in cut if name in ITEM),
    )


def make(graph: Path, items: ItemTable, tables: Mapping[str, Path]) -> None:
    """Run the items' graph over a table of items, and write what it gives.

    Args:
        graph: where `Split.items` was written.
        items: the table.
        tables: the file of each of `Split.tables`.
    """
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    wanted = [each.name for each in session.get_inputs()]
    count = len(items.inputs)
    files: list[npt.NDArray[Any]] = []
    for start in range(0, count, _ROWS):
        part = items.inputs.take(slice(start, start + _ROWS))
        arrays = {"item.ids": part.ids, "item.numbers": part.numbers}
        found = session.run(None, {name: np.ascontiguousarray(arrays[name]) for name in wanted})
        if not files:
            files = [
                np.lib.format.open_memmap(path, "w+", each.dtype, (count, *each.shape[1:]))
                for path, each in zip(tables.values(), found, strict=True)
            ]
        for file, each in zip(files, found, strict=True):
            file[start : start + len(part)] = each


def _of_items(graph: Graph) -> set[str]:
    """Tensors that only items decide, with a row for each."""
    of_items, free = set(ITEM), set(graph.constants)
    for node in graph.nodes:
        read = {name for name in node.input if name}
        if read <= free:
            free.update(node.output)
        elif read <= of_items | free and all(graph.shapes.get(name, ())[:1] == ("B",) for name in node.output):
            of_items.update(node.output)
    return of_items


def _is_of(node: onnx.NodeProto, of_items: set[str]) -> bool:
    return any(name in of_items for name in node.output)


def _reads(node: onnx.NodeProto, name: str) -> bool:
    return name in node.input


def _making(
    proto: onnx.ModelProto, whole: Graph, computed: Sequence[str], of_items: set[str]
) -> onnx.ModelProto:
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    del part.graph.output[:]
    for name in computed:
        part.graph.output.append(_value(whole, name))
    graph = Graph(part)
    write_back(graph, part)
    kept = [value for value in proto.graph.input if graph.readers[value.name]]
    del part.graph.input[:]
    part.graph.input.extend(kept)
    return part


def _reading(
    proto: onnx.ModelProto, whole: Graph, tables: Mapping[str, str], of_items: set[str]
) -> onnx.ModelProto:
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    others = [value for value in proto.graph.input if value.name not in ITEM]
    del part.graph.input[:]
    part.graph.input.extend(others)
    part.graph.input.append(helper.make_tensor_value_info(ITEM_ROWS, TensorProto.INT32, ["B"]))
    for name, table in tables.items():
        part.graph.input.append(_value(whole, name, table, "N"))
    look_ups = [
        helper.make_node("Gather", [table, ITEM_ROWS], [name], axis=0) for name, table in tables.items()
    ]
    rest = [node for node in part.graph.node if not _is_of(node, of_items)]
    del part.graph.node[:]
    part.graph.node.extend([*look_ups, *rest])
    write_back(Graph(part), part)
    return part


def _value(graph: Graph, name: str, other: str | None = None, first: str = "B") -> onnx.ValueInfoProto:
    """A tensor's type and shape, under another name and with another first axis if wished."""
    shape = [first, *graph.shapes[name][1:]]
    return helper.make_tensor_value_info(other or name, graph.types[name], shape)

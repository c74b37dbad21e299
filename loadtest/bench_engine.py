"""The engine alone: what the servable's form is worth, and how much of it the arithmetic is.

Three graphs of one model under one pack, on one thread, in interleaved rounds:

    flat     everything for every row, the request's work included (`loadtest.flat`)
    fields   the bundle's graph: the request's half once, items by their fields
    rows     the bundle's graph over item halves: items by their row

The floor is the time that the linear layers which remain for each candidate take by themselves: a graph of
their matrix products in the same runtime. That is the fastest of what was tried; numpy and torch may use
slower kernels on a processor that theirs were not written for, so torch's rate is given beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from export.folding import Graph
from export.graph import OPSET
from loadtest.flat import INPUT, Flat, write
from loadtest.fleet import BenchError
from service.contract.bundle import Bundle
from service.contract.field import Scope
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines import ort
from training.model import Model

SIZES = (1, 32, 100, 500, 1000)
SCOPES: tuple[Scope, ...] = ("request", "item")
_REQUESTS = 64
"""Different ones of a size, taken in turn: those asked again would find their items' rows in the cache."""
_SLICE = 0.01
"""Seconds of each kind in a round."""
Ask = Callable[[], object]
Inputs = Mapping[str, npt.NDArray[Any]]
Layer = tuple[int, int]
"""Columns in and out."""


def engine(
    bundle: Bundle, model: Model, pack: DomainPack, sizes: Sequence[int] = SIZES, rounds: int = 30
) -> dict[str, dict[str, float]]:
    """Measure, by number of candidates: `engine.500` and so on.

    Each has for `flat`, `fields` and, if the bundle has item halves, `rows`: `<kind>.candidates_per_s`,
    `.p50_us`, `.p99_us`, `.ratio_to_flat` (of speeds; above 1 is faster than flat), `.floor_share` (of the
    time; 1 would be matrix products and nothing else), `.flop` of those products for a candidate, and
    `.gemm_gflops` and `.torch_gflops`, the rates of the products alone.

    Args:
        bundle: of ids alone, each field having one.
        model: what it was exported from.
        pack: what to score under.
        sizes: numbers of candidates.
        rounds: how often all are measured in turn.

    Raises:
        TypeError: the yardstick is not written for such a model.
        BenchError: the graphs do not agree.
    """
    owned = {name: torch.from_numpy(np.array(tensor)) for name, tensor in pack.tensors.items()}
    report = {}
    with (
        tempfile.TemporaryDirectory(prefix="mdctr-bench-") as place,
        closing(ort.open(bundle, threads=1)) as scoring,
        _one_thread(),
    ):
        graphs = {"flat": Path(place) / "flat.onnx", "fields": bundle.graph}
        if bundle.manifest.item_halves is not None:
            graphs["rows"] = bundle.path / bundle.manifest.item_halves.graph
        width = sum(bundle.schema.widths(scope)[0] for scope in SCOPES)
        write(Flat(model.paradigm.servable(), owned), width, graphs["flat"])
        layers = {kind: linear_layers(graph) for kind, graph in graphs.items()}
        products = {
            kind: ort.session(_products(each, Path(place) / f"{kind}.products.onnx"), threads=1)
            for kind, each in layers.items()
        }
        session, handle = ort.session(graphs["flat"], threads=1), scoring.load(pack)
        score: dict[str, Callable[[Inputs], npt.NDArray[np.float32]]] = {
            "flat": lambda given: session.run(["logit"], given)[0],
            "fields": lambda given: scoring.score(given, handle),
            "rows": lambda given: scoring.score(given, handle),
        }
        for n in sizes:
            requests = [_request(bundle, n, seed) for seed in range(_REQUESTS)]
            _compare(requests[0], {kind: score[kind] for kind in graphs})
            asks: dict[str, Ask] = {}
            for kind in graphs:
                asks[kind] = _asking(score[kind], [request[kind] for request in requests])
                left = [np.random.default_rng(0).random((n, wide), np.float32) for wide, _ in layers[kind]]
                asks[f"{kind}.floor"] = partial(
                    products[kind].run, None, {f"x{at}": each for at, each in enumerate(left)}
                )
                asks[f"{kind}.torch"] = _multiplying(layers[kind], left)
            report[f"engine.{n}"] = _figures(n, _timed(asks, rounds), layers)
    return report


def linear_layers(graph: Path) -> list[Layer]:
    """Columns in and out of the linear layers that run for every candidate."""
    found = Graph(onnx.load(str(graph), load_external_data=False))
    layers = [node for node in found.nodes if node.op_type == "Gemm" and found.many(node.output[0])]
    return [(int(found.shapes[node.input[0]][1]), int(found.shapes[node.output[0]][1])) for node in layers]


def _request(bundle: Bundle, n: int, seed: int) -> dict[str, Inputs]:
    """A random one, as each kind reads it."""
    random = np.random.default_rng([seed, n])
    schema, items = bundle.schema, bundle.items
    columns = {slot.field.key: [int(random.integers(0, 10_000))] for slot in schema.scope("request")}
    asked = schema.encode("request", columns, 1).ids
    rows = random.integers(1, len(items) + 1, n, dtype=np.int32)
    ids = items.inputs.ids[rows]
    return {
        "flat": {INPUT: np.concatenate([np.repeat(asked, n, 0), ids], 1)},
        "fields": {"request.ids": asked, "item.ids": ids},
        "rows": {"request.ids": asked, ITEM_ROWS: rows},
    }


def _compare(request: Mapping[str, Inputs], score: Mapping[str, Callable[[Inputs], Any]]) -> None:
    expected = score["flat"](request["flat"])
    for kind, ask in score.items():
        if not np.allclose(ask(request[kind]), expected, rtol=1e-4, atol=1e-4):
            raise BenchError(f"{kind} answers otherwise than flat")


def _asking(score: Callable[[Inputs], object], requests: Sequence[Inputs]) -> Ask:
    turns = cycle(requests)
    return lambda: score(next(turns))


def _products(layers: Sequence[Layer], path: Path) -> Path:
    """A graph of the layers' matrix products, each of an input of its own, and nothing else."""
    draw = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"x{at}", f"w{at}"], [f"y{at}"]) for at in range(len(layers))],
        "products",
        [_matrix(f"x{at}", wide) for at, (wide, _) in enumerate(layers)],
        [_matrix(f"y{at}", out) for at, (_, out) in enumerate(layers)],
        [numpy_helper.from_array(draw.random(each, np.float32), f"w{at}") for at, each in enumerate(layers)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)
    return path


def _matrix(name: str, columns: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", columns])


def _multiplying(layers: Sequence[Layer], left: Sequence[npt.NDArray[np.float32]]) -> Ask:
    """The same products in torch."""
    parts = [
        (torch.from_numpy(x), torch.rand(layer), torch.empty(len(x), layer[1]))
        for x, layer in zip(left, layers, strict=True)
    ]

    def multiply() -> None:
        for x, weight, out in parts:
            torch.mm(x, weight, out=out)

    return multiply


def _timed(asks: Mapping[str, Ask], rounds: int) -> dict[str, list[npt.NDArray[np.float64]]]:
    """Seconds of each call, by round."""
    calls = {}
    for name, ask in asks.items():
        ask()
        calls[name] = max(5, round(_SLICE / max(np.median(_seconds(ask, 5)), 1e-7)))
    found: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in asks}
    for _ in range(rounds):
        for name, ask in asks.items():
            found[name].append(_seconds(ask, calls[name]))
    return found


def _seconds(ask: Ask, calls: int) -> npt.NDArray[np.float64]:
    seconds = np.empty(calls)
    for at in range(calls):
        began = time.perf_counter()
        ask()
        seconds[at] = time.perf_counter() - began
    return seconds


def _figures(
    n: int, timed: Mapping[str, Sequence[npt.NDArray[np.float64]]], layers: Mapping[str, Sequence[Layer]]
) -> dict[str, float]:
    """Medians over rounds; ratios are taken within a round, since a shared machine is not always as fast."""
    medians = {name: np.array([np.median(each) for each in rounds]) for name, rounds in timed.items()}
    figures: dict[str, float] = {}
    for kind, each in layers.items():
        floor, flop = medians[f"{kind}.floor"], 2.0 * sum(wide * out for wide, out in each)
        p99 = np.median([np.percentile(each, 99) for each in timed[kind]])
        figures |= {
            f"{kind}.candidates_per_s": n / float(np.median(medians[kind])),
            f"{kind}.ratio_to_flat": float(np.median(medians["flat"] / medians[kind])),
            f"{kind}.p50_us": float(np.median(medians[kind])) * 1e6,
            f"{kind}.p99_us": float(p99) * 1e6,
            f"{kind}.floor_share": float(np.median(floor / medians[kind])),
            f"{kind}.flop": flop,
            f"{kind}.gemm_gflops": 1e-9 * n * flop / float(np.median(floor)),
            f"{kind}.torch_gflops": 1e-9 * n * flop / float(np.median(medians[f"{kind}.torch"])),
        }
    return figures


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

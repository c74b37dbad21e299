"""Against the formula, written out row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from export import graph
from export.servable import ScopedModel, graph_inputs
from tests.conftest import train
from tests.training.paradigms.making import GENERAL, make, shared_part, stir
from training.data.batches import Rows


def apg(root: Path) -> tuple[Any, Rows]:
    paradigm, rows = make("apg", root, hidden=[6, 5], rank=3, inner=4)
    stir(paradigm)
    return paradigm, rows


def test_logit_is_the_ranker_and_the_low_rank_network(data_root: Path) -> None:
    paradigm, rows = apg(data_root)
    body = paradigm.body
    with torch.inference_mode():
        found = paradigm(rows)
        first_order, request, item = shared_part(paradigm, rows)
        hidden, direct = body.backbone(request, item)
        ranker = first_order + direct + body.head(hidden)[:, 0]
        for row in (0, 70, 190):
            x: Tensor = torch.cat([request[row].flatten(), item[row].flatten()])
            given = paradigm.own(int(rows.domain[row]))
            for layer, own in zip(body.layers, given, strict=True):
                U, V = layer.left[0] @ layer.left[1], layer.right[0] @ layer.right[1]
                x = ((x @ U) @ own.matrix @ V + own.bias).clamp(min=0)
            expected = ranker[row] + body.out(x)[0]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_domain_owns_what_its_embedding_generates(data_root: Path) -> None:
    """Layers of 6 and 5 at rank 3: 9 + 9 + 6 + 5 = 29 floats, by a plain pass through the generator."""
    paradigm, _ = apg(data_root)
    generate = paradigm.condition.generate
    with torch.inference_mode():
        hidden = (paradigm.condition.embedding[1] @ generate[0].weight.T + generate[0].bias).clamp(min=0)
        flat = hidden @ generate[2].weight.T + generate[2].bias
        pack = paradigm.pack(1)
        found = [pack[f"own.{at}.{kind}"].flatten() for kind in ("matrix", "bias") for at in (0, 1)]
    torch.testing.assert_close(torch.cat(found), flat)
    assert [len(part) for part in found] == [9, 9, 6, 5]
    assert {id(p) for p in paradigm.own(GENERAL).parameters()}.isdisjoint(map(id, paradigm.parameters()))


def test_matrices_start_near_one_and_biases_at_zero(data_root: Path) -> None:
    paradigm, _ = make("apg", data_root)
    for own in paradigm.own(0):
        assert (own.matrix - torch.eye(8)).abs().mean() < 0.3
        assert not own.bias.any()


def test_an_engine_multiplies_u_and_v_out_when_it_loads(data_root: Path, tmp_path: Path) -> None:
    """What is left of 6 inputs through P = 4 to K = 3: no product of two constants, and no tensor of U1."""
    trained = train(tmp_path / "run", data_root, paradigm={"name": "apg", "rank": 3, "inner": 29})
    inputs = graph_inputs(trained.model.schema, trained.model)
    graph.write(ScopedModel(trained.model.paradigm.servable(), inputs), inputs, tmp_path / "graph.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "graph.onnx", options, providers=["CPUExecutionProvider"])
    for tensor in onnx.load(tmp_path / "optimised.onnx").graph.initializer:
        assert 29 not in tensor.dims, tensor.name

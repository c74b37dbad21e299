"""Encoders, their graphs, and the report, on shapes so small that only the way there is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from service.contract.errors import RunError
from training.teachers import encoder_graph, encoders, rounds, speed, step
from training.teachers.disentangled import Disentangled, FixedDeberta
from training.teachers.session import Session

CPU = torch.device("cpu")
B, L = 3, 40
SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
DEBERTA: dict[str, Any] = {
    "type_vocab_size": 0,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 16,  # so that distances beyond 8 share buckets, as those beyond 128 do in a large one
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
TINY: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SHAPE),
    "deberta": lambda: transformers.DebertaV2Config(**SHAPE, **DEBERTA),
    "deberta with projections of positions": lambda: transformers.DebertaV2Config(
        **SHAPE, **DEBERTA | {"share_att_key": False, "position_buckets": -1}
    ),
}
_REST = ["MatMul", "SkipLayerNormalization", "MatMul", "BiasGelu", "MatMul", "SkipLayerNormalization"]
DEBERTAS = [name for name in TINY if name.startswith("deberta")]


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(encoders, "SIZES", TINY)
    monkeypatch.setattr(speed, "BATCH", B)
    monkeypatch.setattr(speed, "LENGTH", L)
    monkeypatch.setattr(speed, "_ROUNDS", 2)


def model(name: str, dtype: torch.dtype = torch.float32):
    """Of random weights, biases and norms included: those that begin at zero or one would hide a fault."""
    built = encoders.build(name, CPU, dtype)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return built


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(5, 100, (B, L), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", DEBERTAS)
@pytest.mark.parametrize("length", [L, 7])
def test_a_deberta_for_one_length_is_the_librarys(name, length, tokens):
    built, tokens = model(name), tokens[:, :length]
    expected = built(input_ids=tokens).last_hidden_state
    assert (FixedDeberta(built, length)(tokens) - expected).abs().max() < 1e-5


def test_tables_hold_the_positions_that_occur_and_no_more():
    """256 tokens of a large DeBERTa are at most 192 buckets apart to either side, out of 256."""
    config = transformers.DebertaV2Config(
        **SHAPE | {"max_position_embeddings": 512}, **DEBERTA | {"position_buckets": 256}
    )
    attention = transformers.AutoModel.from_config(config).encoder.layer[0].attention.self
    made = Disentangled(attention, torch.randn(512, 64), 256)
    assert made.key_table.shape == made.query_table.shape == (4, 16, 392)
    assert int(made.key_index.max()) < 256 * 392
    assert made.key_index[0] == 192
    assert made.key_index[255] == 0


def test_other_debertas_are_refused():
    with pytest.raises(RunError, match="on both sides"):
        FixedDeberta(
            transformers.AutoModel.from_config(
                transformers.DebertaV2Config(**SHAPE, **DEBERTA | {"pos_att_type": ["c2p"]})
            ),
            L,
        )
    with pytest.raises(RunError, match="on both sides"):
        FixedDeberta(model("bert"), L)


@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 1e-4), (torch.float16, 3e-2)])
@pytest.mark.parametrize("name", TINY)
def test_a_graph_computes_what_torch_does(name, dtype, budget, tokens, tmp_path):
    built = model(name, dtype)
    path = encoder_graph.write(built, tmp_path / "graph", B, L)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {encoder_graph.INPUT: tokens.int().numpy()})[0]
    with torch.no_grad():
        expected = built(input_ids=tokens).last_hidden_state.numpy()
    assert found.dtype == expected.dtype
    assert np.abs(found.astype(np.float32) - expected.astype(np.float32)).max() < budget


def test_a_graph_has_the_fused_operators_and_its_weights_beside_it(tmp_path):
    import onnx

    found = onnx.load(encoder_graph.write(model("bert"), tmp_path, B, L), load_external_data=False)
    assert [node.op_type for node in found.graph.node] == [
        "Gather",
        "Add",
        "LayerNormalization",
        *(["Attention", *_REST] * SHAPE["num_hidden_layers"]),
    ]
    assert (tmp_path / "model.onnx").stat().st_size < 10_000


def test_graphs_of_other_models_are_refused(tmp_path):
    config = transformers.BertConfig(**SHAPE, hidden_act="relu")
    with pytest.raises(RunError, match="bert with relu"):
        encoder_graph.write(transformers.AutoModel.from_config(config), tmp_path, B, L)
    other = transformers.DebertaV2Config(**SHAPE, **DEBERTA | {"position_biased_input": True})
    with pytest.raises(RunError, match="nothing but its words"):
        encoder_graph.write(transformers.AutoModel.from_config(other), tmp_path, B, L)


@torch.no_grad()
def test_the_work_of_a_bert_is_what_torch_counts(tokens):
    built = model("bert")
    built.set_attn_implementation("eager")  # of fused attention on a CPU torch counts nothing
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        built(input_ids=tokens)
    assert encoders.work(built.config, B, L) == counter.get_total_flops()


def test_the_work_of_a_deberta_has_two_products_more():
    bert, deberta = (encoders.work(TINY[name](), B, L) for name in ("bert", "deberta"))
    assert deberta - bert == 2 * 2 * (2 * B * L * L * 64)  # layers, products, and one of them


def test_runs_take_turns(monkeypatch):
    order: list[str] = []
    taken = rounds.seconds({name: partial(order.append, name) for name in "ab"}, CPU, 2)
    assert "".join(order) == "aaabbb" + "abab"
    assert [len(each) for each in taken.values()] == [2, 2]


def test_the_spread_is_in_milliseconds():
    found = rounds.spread([0.001 * at for at in range(11)])
    assert found == pytest.approx({"ms": 5, "p10_ms": 1, "p90_ms": 9})


def test_a_report_has_what_failed_beside_what_did_not(tmp_path, monkeypatch, capsys):
    argv = [
        "speed",
        "bert",
        "deberta",
        "no-such-folder",
        "--train",
        "bert",
        "--out",
        str(tmp_path / "r.json"),
    ]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(step, "measure", lambda name, device: 1 / 0)
    monkeypatch.setattr(
        FixedDeberta, "forward", lambda self, tokens: (_ for _ in ()).throw(RuntimeError("no"))
    )
    speed.main()
    report = json.loads((tmp_path / "r.json").read_text())
    models = report["models"]
    assert "config.json" in models["no-such-folder"]["error"]
    assert models["deberta"]["runtimes"]["torch_fixed_length"] == {"error": "RuntimeError: no"}
    assert report["train"]["error"] == "ZeroDivisionError: division by zero"
    for name, runtimes in {"bert": {"torch", "onnxruntime"}, "deberta": {"torch"}}.items():
        found = models[name]
        for runtime in runtimes:
            each = found["runtimes"][runtime]
            assert each["tflops"] == pytest.approx(found["tflop"] / each["ms"] * 1e3)
            assert each["share_of_matmul"] == pytest.approx(each["tflops"] / found["matmul_tflops"])
    assert models["bert"]["runtimes"]["onnxruntime"]["greatest_difference"] < 1e-4
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    assert "ZeroDivisionError" in printed


class OnGpu:
    """Tokens that say they are on a GPU."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.device = tokens, torch.device("cuda")

    def int(self) -> torch.Tensor:
        return self.tokens.int()


def on_gpu(tokens) -> Any:
    return OnGpu(tokens)


def test_without_its_cuda_provider_onnx_runtime_is_an_error(tokens, tmp_path):
    path = encoder_graph.write(model("bert"), tmp_path, B, L)
    with pytest.raises(RuntimeError, match="has no CUDA provider"):
        Session(path, on_gpu(tokens))


def test_a_graph_that_cannot_be_captured_is_run_without_and_said_to_be(tokens, tmp_path, monkeypatch):
    """ONNX Runtime of the CPU plays the GPU's, and fails when it is to capture."""
    asked: list[str] = []
    create, place = onnxruntime.InferenceSession, onnxruntime.OrtValue.ortvalue_from_numpy
    empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def session(path, options, providers, enable_fallback):
        asked.append(providers[0][1]["enable_cuda_graph"])
        if asked[-1] == "1":
            raise ValueError("no capture")
        made = create(path, options, providers=["CPUExecutionProvider"])
        made.get_providers = lambda: [providers[0][0]]
        return made

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    values = onnxruntime.OrtValue
    monkeypatch.setattr(values, "ortvalue_from_numpy", lambda array, at, of: place(array, "cpu", of))
    monkeypatch.setattr(values, "ortvalue_from_shape_and_type", lambda s, t, at, of: empty(s, t, "cpu", of))
    built = model("bert")
    found = Session(encoder_graph.write(built, tmp_path, B, L), on_gpu(tokens))
    assert asked == ["1", "0"]
    assert (found.cuda_graph, found.note) == (False, "ValueError: no capture")
    with torch.no_grad():
        assert (found.hidden() - built(input_ids=tokens).last_hidden_state).abs().max() < 1e-4


def test_nothing_begins_when_time_is_over(tmp_path):
    report = speed.measure(["bert"], seconds=-1, out=tmp_path / "r.json")
    assert report["models"]["bert"] == {"error": "left out: -1 s were over"}


@pytest.mark.parametrize("name", ["tiny", "bert"])
def test_a_training_step_is_measured(name, monkeypatch):
    monkeypatch.setattr(rounds, "WARM", 1)
    monkeypatch.setitem(
        TINY,
        "bert",
        lambda: transformers.BertConfig(**SHAPE | {"max_position_embeddings": 160, "vocab_size": 1000}),
    )
    found = step.measure(name, CPU, batch=8, steps=1, count=2)
    assert found["rows_per_s"] == pytest.approx(8e3 / found["step"]["ms"])
    assert 105 < found["tokens_per_row"] < 125
    assert found["step_tflop"] > 0
    # Of a model with weights LoRA and the networks are trained; `tiny` is trained whole.
    assert (found["trained_parameters"] == found["parameters"]) == (name == "tiny")
    report = {"device": "cpu", "models": {}, "train": found}
    assert "rows/s" in str(speed.table(report).caption)

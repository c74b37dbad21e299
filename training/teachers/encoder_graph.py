"""An encoder as a graph of ONNX Runtime's fused operators, for texts of one number and length.

What its optimiser would make of an exported BERT: attention, residual with LayerNorm and GELU with their
biases are one operator each. DeBERTa's positions are the bias of a fused attention
(`training.teachers.disentangled`). The graph is written from the model's own tensors; texts have no padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from service.contract.errors import RunError
from training.teachers.disentangled import Disentangled, FixedDeberta

INPUT, OUTPUT = "tokens", "hidden"
_FUSED = "com.microsoft"
_PAGE = 4096
"""A tensor begins at a multiple of it, so that the file can be mapped."""


def write(model: Any, folder: Path, batch: int, length: int) -> Path:  # noqa: ANN401 - no common type with types
    """Write `model.onnx`, its tensors beside it, in the model's own precision.

    Its input `tokens` is (batch, length) int32, its output `hidden` (batch, length, width).

    Raises:
        RunError: the model is neither a BERT nor a DeBERTa that `FixedDeberta` takes.
    """
    config = model.config
    if config.model_type not in ("bert", "deberta-v2") or config.hidden_act != "gelu":
        raise RunError(f"no graph is known for a {config.model_type} with {config.hidden_act}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    with torch.no_grad(), path.with_suffix(".data").open("wb") as data:
        graph = _Graph(data, config, model)
        if config.model_type == "bert":
            _bert(graph, length)
        else:
            _deberta(graph, FixedDeberta(model, length), batch, length)
        kind = TensorProto.FLOAT16 if model.dtype == torch.float16 else TensorProto.FLOAT
        made = helper.make_graph(
            graph.nodes,
            config.model_type,
            [helper.make_tensor_value_info(INPUT, TensorProto.INT32, [batch, length])],
            [helper.make_tensor_value_info(OUTPUT, kind, [batch, length, config.hidden_size])],
            graph.constants,
        )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_FUSED, 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


class _Graph:
    """Nodes and constants as they come; each is called by what `add` and `constant` return."""

    def __init__(self, data: BinaryIO, config: Any, model: Any) -> None:  # noqa: ANN401 - untyped
        self.data, self.config = data, config
        self.tensors: dict[str, Tensor] = model.state_dict()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: float | list[int]) -> str:
        name = f"{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [name], name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def constant(self, value: Tensor) -> str:
        array = value.detach().contiguous().cpu().numpy()
        name = f"constant_{len(self.constants)}"
        proto = TensorProto(name=name, dims=array.shape)
        proto.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.data.write(b"\0" * (-self.data.tell() % _PAGE))
        entries = {
            "location": Path(self.data.name).name,
            "offset": str(self.data.tell()),
            "length": str(array.nbytes),
        }
        for key, entry in entries.items():
            proto.external_data.add(key=key, value=entry)
        proto.data_location = TensorProto.EXTERNAL
        self.data.write(array.data)
        self.constants.append(proto)
        return name

    def shape(self, *dims: int) -> str:
        name = f"shape_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(dims, np.int64), name))
        return name

    def weights(self, *names: str) -> str:
        """The weights of linear layers side by side, (in, out)."""
        return self.constant(torch.cat([self.tensors[f"{name}.weight"] for name in names]).t())

    def biases(self, *names: str) -> str:
        return self.constant(torch.cat([self.tensors[f"{name}.bias"] for name in names]))

    def norm(self, name: str) -> tuple[str, str]:
        return tuple(self.constant(self.tensors[f"{name}.{part}"]) for part in ("weight", "bias"))  # type: ignore[return-value]

    def normed(self, hidden: str, name: str) -> str:
        return self.add(
            "LayerNormalization", hidden, *self.norm(name), axis=-1, epsilon=self.config.layer_norm_eps
        )

    def rest(self, at: int, attended: str, hidden: str) -> str:
        """A layer from its attention's output on."""
        layer = f"encoder.layer.{at}"
        attended = self._onto(hidden, attended, f"{layer}.attention.output")
        wide = self.add("MatMul", attended, self.weights(f"{layer}.intermediate.dense"))
        bias = self.biases(f"{layer}.intermediate.dense")
        wide = self.add("BiasGelu", wide, bias, domain=_FUSED)
        return self._onto(attended, wide, f"{layer}.output")

    def finished(self, hidden: str) -> None:
        self.nodes[-1].output[0] = OUTPUT
        assert self.nodes[-1].name == hidden  # noqa: S101 - the last layer is written last

    def _onto(self, residual: str, hidden: str, name: str) -> str:
        return self.add(
            "SkipLayerNormalization",
            self.add("MatMul", hidden, self.weights(f"{name}.dense")),
            residual,
            *self.norm(f"{name}.LayerNorm"),
            self.biases(f"{name}.dense"),
            domain=_FUSED,
            epsilon=self.config.layer_norm_eps,
        )


def _bert(graph: _Graph, length: int) -> None:
    tensors = graph.tensors
    places = tensors["embeddings.position_embeddings.weight"][:length]
    places = places + tensors["embeddings.token_type_embeddings.weight"][:1]
    words = graph.constant(tensors["embeddings.word_embeddings.weight"])
    hidden = graph.add("Add", graph.add("Gather", words, INPUT), graph.constant(places))
    hidden = graph.normed(hidden, "embeddings.LayerNorm")
    for at in range(graph.config.num_hidden_layers):
        sides = [f"encoder.layer.{at}.attention.self.{side}" for side in ("query", "key", "value")]
        attended = graph.add(
            "Attention",
            hidden,
            graph.weights(*sides),
            graph.biases(*sides),
            domain=_FUSED,
            num_heads=graph.config.num_attention_heads,
        )
        hidden = graph.rest(at, attended, hidden)
    graph.finished(hidden)


def _deberta(graph: _Graph, model: FixedDeberta, batch: int, length: int) -> None:
    tensors, config = graph.tensors, graph.config
    if (
        config.position_biased_input
        or config.type_vocab_size
        or getattr(config, "embedding_size", None)
        not in (
            None,
            config.hidden_size,
        )
    ):
        raise RunError("only a DeBERTa that reads nothing but its words' embeddings is known")
    hidden = graph.add("Gather", graph.constant(tensors["embeddings.word_embeddings.weight"]), INPUT)
    hidden = graph.normed(hidden, "embeddings.LayerNorm")
    first = model.attentions[0]
    assert isinstance(first, Disentangled)  # noqa: S101 - a ModuleList does not know what is in it
    N, d, W = first.key_table.shape
    split = graph.shape(batch, length, N, d)
    alone = graph.shape(N * batch, length, d)
    heads, rows = graph.shape(N, batch * length, d), graph.shape(N * batch, length * W)
    bias_shape, together = graph.shape(N * batch, 1, length, length), graph.shape(N, batch, length, d)
    square, joined = graph.shape(N * batch, length, length), graph.shape(batch, length, N * d)
    key_index, query_index = graph.constant(first.key_index), graph.constant(first.query_index)

    def side(name: str, attention: str) -> str:
        linear = f"{attention}.{name}_proj"
        found = graph.add("MatMul", hidden, graph.weights(linear))
        found = graph.add("Add", found, graph.biases(linear))
        return graph.add("Transpose", graph.add("Reshape", found, split), perm=[2, 0, 1, 3])

    def met(given: str, table: Tensor, index: str) -> str:
        scores = graph.add("MatMul", graph.add("Reshape", given, heads), graph.constant(table))
        return graph.add("Gather", graph.add("Reshape", scores, rows), index, axis=1)

    for at, attention in enumerate(model.attentions):
        assert isinstance(attention, Disentangled)  # noqa: S101 - as above
        query, key, value = (
            side(name, f"encoder.layer.{at}.attention.self") for name in ("query", "key", "value")
        )
        of_keys = graph.add("Reshape", met(query, attention.key_table, key_index), bias_shape)
        of_queries = graph.add("Reshape", met(key, attention.query_table, query_index), square)
        of_queries = graph.add("Transpose", of_queries, perm=[0, 2, 1])
        bias = graph.add("Add", of_keys, graph.add("Reshape", of_queries, bias_shape))
        # Each head is a text of its own: so the bias is as its products left it, heads before texts.
        attended = graph.add(
            "MultiHeadAttention",
            *(graph.add("Reshape", each, alone) for each in (query, key, value)),
            "",
            "",
            bias,
            domain=_FUSED,
            num_heads=1,
            scale=attention.scale,
        )
        attended = graph.add("Reshape", attended, together)
        attended = graph.add("Reshape", graph.add("Transpose", attended, perm=[1, 2, 0, 3]), joined)
        hidden = graph.rest(at, attended, hidden)
    graph.finished(hidden)

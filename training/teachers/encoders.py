"""Encoders by size: a few known shapes with random weights, or a folder, and how much a pass multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as _untyped

from training import text

transformers: Any = _untyped
"""Half of its functions have no types."""

SIZES: dict[str, Callable[[], Any]] = {
    "minilm": lambda: transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "bert-base": transformers.BertConfig,
    "bert-large": lambda: transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "deberta-v3-large": lambda: transformers.DebertaV2Config(
        vocab_size=128100,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        position_buckets=256,
        max_relative_positions=-1,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    ),
}
"""Configurations of encoders; models of these names have random weights."""

COUNTED = (
    "two operations a weight of a linear layer and token, without embeddings and pooler; attention's two "
    "products, and DeBERTa's two with positions as if each query and key met as many positions as keys"
)
"""What `work` counts."""


def build(name: str, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401 - no common type with types
    """An encoder for inference, on a device.

    Args:
        name: one of `SIZES`, for random weights, or a model as `training.text.language_model` names it.
        device: where it is.
        dtype: of its weights.

    Raises:
        RunError: there is no such model.
    """
    if name in SIZES:
        torch.manual_seed(0)
        with device:  # where a third of a billion random numbers take no time
            model = transformers.AutoModel.from_config(SIZES[name]())
        if hasattr(model, "pooler"):
            model.register_module("pooler", None)
    else:
        model = text.language_model(name, 0)
    # With a padding token known, a pass without a mask looks at the tokens, which waits for the device.
    model.config.pad_token_id = None
    return model.to(device, dtype).eval()


def work(config: Any, batch: int, length: int) -> int:  # noqa: ANN401 - as above
    """Floating-point operations of a pass over `batch` texts of `length` tokens, as `COUNTED` says."""
    width, tokens = config.hidden_size, batch * length
    linear = 2 * tokens * (4 * width * width + 2 * width * config.intermediate_size)
    product = 2 * tokens * length * width
    products = 2 + len(getattr(config, "pos_att_type", None) or [])
    return int(config.num_hidden_layers * (linear + products * product))

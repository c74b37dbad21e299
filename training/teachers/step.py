"""A training step of a Uni-CTR teacher over synthetic prompts: rows and tokens a second, and of what rate."""

from __future__ import annotations

import statistics
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from service.contract.field import PAD, Field, Owner
from service.contract.schema import FeatureSchema
from training import text
from training.data.batches import Rows
from training.loop import Loop, Pass, Standing
from training.recipe import Optimisation
from training.stages import training_only
from training.teachers import encoders, rounds
from training.teachers.unictr import Options, UniCTR

DOMAINS = 7
_PARTS: dict[Owner, tuple[int, int]] = {"context": (50, 90), "item": (35, 55)}
"""Tokens of a prompt's two parts, at least and at most: 115 on average."""
_RATE = 5e-4
_WORDS = 1_000
"""Token ids of `tiny`."""


def measure(
    name: str, device: torch.device, batch: int = 256, steps: int = 8, count: int = 6
) -> dict[str, Any]:
    """Time `count` times `steps` steps, as the loop makes them, with products of matrices between them.

    Args:
        name: the teacher's language model: a name of `encoders.SIZES`, for random weights, or what
            `training.text.language_model` takes.
        device: where it is trained; on a GPU in mixed precision.
        batch: rows a step.
        steps: that are timed as one.
        count: how many times.

    Returns:
        `step` with milliseconds, rows and tokens a second, `step_tflop` that it multiplies, counted by torch
        in one step's forward and backward pass, padding between prompts of a batch included, `tflops` a
        second and `share_of_matmul`.

    Raises:
        RunError: there is no such model.
    """
    # cuDNN plans attention anew for every length of text.
    torch.backends.cuda.enable_cudnn_sdp(False)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    teacher, schema = _teacher(name)
    teacher.to(device)
    rows = _rows(schema, batch * (steps * (count + rounds.WARM) + 2)).to(device)
    trains = teacher.stages()[0].trains
    options = Optimisation(
        epochs=1, batch=batch, lr=_RATE, l2=0, decay=1e-3, schedule="linear", warmup=0.05, clip=1.0
    )

    def loss(some: Rows) -> Tensor:
        part = some.under(DOMAINS)
        label = torch.cat([some.label, part.label])
        return binary_cross_entropy_with_logits(teacher.both(some, part), label, reduction="sum") / len(some)

    work = Pass("joint", teacher, trains, options, rows, loss, float, teacher.batches)
    product = rounds.Product(device, dtype)
    with training_only(teacher, trains) as parameters:
        optimiser = torch.optim.Adam(
            parameters, lr=_RATE, weight_decay=options.decay, decoupled_weight_decay=True, fused=True
        )
        loop = Loop(0, Progress(disable=True), precision=dtype)
        walk = loop.steps(work, Standing(0, 0, 0.0, {}), optimiser, [])
        next(walk)
        with FlopCounterMode(display=False) as counter:
            next(walk)

        def several() -> None:
            for _ in range(steps):
                next(walk)

        taken = rounds.seconds({rounds.MATMUL: product, "steps": several}, device, count)
    tokens = sum(int((each != PAD).sum()) for each in (rows.request_ids, rows.item_ids)) / len(rows)
    step = [each / steps for each in taken["steps"]]
    middle, flops = statistics.median(step), counter.get_total_flops()
    matmul = product.flops / statistics.median(taken[rounds.MATMUL])
    return {
        "model": name,
        "precision": str(dtype).removeprefix("torch."),
        "batch": batch,
        "tokens_per_row": tokens,
        "parameters": sum(each.numel() for each in teacher.parameters()),
        "trained_parameters": sum(each.numel() for each in parameters),
        "step": rounds.spread(step),
        "rows_per_s": batch / middle,
        "tokens_per_s": batch * tokens / middle,
        "step_tflop": flops / 1e12,
        "tflops": flops / middle / 1e12,
        "matmul_tflops": matmul / 1e12,
        "share_of_matmul": flops / middle / matmul,
    }


def _teacher(name: str) -> tuple[UniCTR, FeatureSchema]:
    torch.manual_seed(0)
    if name not in encoders.SIZES:
        words = _WORDS
        if name != "tiny":
            path = text.folder(name)
            words = encoders.transformers.AutoConfig.from_pretrained(path, local_files_only=True).vocab_size
        schema = _schema(words)
        return UniCTR(Options(model=name), schema, DOMAINS), schema
    config = encoders.SIZES[name]()
    schema = _schema(config.vocab_size)
    with TemporaryDirectory() as folder:
        # LoRA adapts what a folder has; a model that begins at random would be trained whole.
        encoders.transformers.AutoModel.from_config(config).save_pretrained(folder)
        return UniCTR(Options(model=folder), schema, DOMAINS), schema


def _schema(words: int) -> FeatureSchema:
    return FeatureSchema(
        fields=tuple(
            Field(
                name="tokens",
                owner=owner,
                kind="vocabulary",
                dtype="int",
                multiple=most,
                values=tuple(range(words)),
            )
            for owner, (_, most) in _PARTS.items()
        )
    )


def _rows(schema: FeatureSchema, n: int) -> Rows:
    random = np.random.default_rng(0)
    parts = []
    for owner, (least, most) in _PARTS.items():
        first = schema.slots[f"{owner}.tokens"].offset + 1
        ids = random.integers(5, _WORDS, (n, most), dtype=np.int32) + first
        ids[np.arange(most) >= random.integers(least, most + 1, n)[:, None]] = PAD
        parts.append(torch.from_numpy(ids))
    empty = torch.zeros(n, 0)
    label = torch.from_numpy(random.integers(0, 2, n).astype(np.float32))
    domain = torch.from_numpy(random.integers(0, DOMAINS, n))
    return Rows(parts[0], empty, parts[1], empty, domain, label)

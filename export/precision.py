"""What float16 costs: AUC and calibration of each domain's test rows, beside torch's float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.contract.errors import BundleError
from service.contract.manifest import Precision
from service.contract.pack import DomainPack
from service.engines._launch import inputs_of
from service.engines._stacks import LAYOUT, stacks_of
from training import metrics
from training.data.batches import Rows
from training.data.prepare import Prepared
from training.model import Model

MOST_AUC = 2e-4
"""Of AUC that a domain may lose."""
_PAIRS = 2
"""Of a click and a non-click whose order may turn: with few rows, these alone are more than `MOST_AUC`."""
_TOGETHER = 2048


def gate(
    model: Model, prepared: Prepared, packs: Sequence[DomainPack], graph: Path, dtype: str
) -> tuple[Precision, ...]:
    """Score every domain's test rows with a graph of many requests, each row as a request of one candidate.

    Args:
        model: the trained model, in torch.
        prepared: its data.
        packs: the general one first, as the bundle has them.
        graph: the file of the graph that takes items by their fields.
        dtype: what its wide layers compute in, for the record.

    Raises:
        BundleError: a domain loses more AUC than it may, or a score is not finite; the text names the domain.
    """
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    rows = Rows.encode(prepared.split("test"), model.schema, model.domains)
    found = []
    for pack in packs[1:]:
        own = rows.of(model.domains.index(pack.domain))
        if not len(own):
            continue
        a, b = (float(each) for each in pack.calibration)
        exact = a * model.logits(own, pack.domain).numpy().astype(np.float64) + b
        logit = a * _logits(session, own, pack).astype(np.float64) + b
        if not np.isfinite(logit).all():
            raise BundleError(f"{dtype}: {pack.domain} has a score that is not finite")
        found.append(compared(pack.domain, dtype, exact, logit, own.label.numpy()))
    return tuple(found)


def compared(
    domain: str,
    dtype: str,
    exact: npt.NDArray[np.float64],
    logit: npt.NDArray[np.float64],
    label: npt.NDArray[np.float32],
) -> Precision:
    """What a domain loses.

    Args:
        domain: whose rows.
        dtype: of the graph that gave `logit`.
        exact: logits (n,) in float32, as served.
        logit: logits (n,) of the graph, as served.
        label: (n,) 0 or 1.

    Raises:
        BundleError: it loses more AUC than it may.
    """
    before, after = metrics.auc(exact, label), metrics.auc(logit, label)
    clicks = int(label.sum())
    pairs = clicks * (len(label) - clicks)
    loss = before - after if pairs else 0.0
    if loss > max(MOST_AUC, _PAIRS / max(1, pairs)):
        raise BundleError(
            f"{dtype}: {domain} loses {loss:.5f} of its AUC of {before:.4f}, more than {MOST_AUC:g}"
        )
    return Precision(
        dtype=dtype,
        domain=domain,
        rows=len(label),
        max_abs_diff=float(np.abs(_probability(logit) - _probability(exact)).max()),
        auc=before if pairs else None,
        auc_loss=loss,
        ece=metrics.ece(exact, label),
        ece_change=metrics.ece(logit, label) - metrics.ece(exact, label),
    )


def _logits(session: onnxruntime.InferenceSession, rows: Rows, pack: DomainPack) -> npt.NDArray[np.float32]:
    inputs = inputs_of(session)
    stacks = stacks_of(session.get_modelmeta().custom_metadata_map[LAYOUT], inputs)
    owned = {stack.name: stack.of(pack) for stack in stacks}
    parts = []
    for start in range(0, len(rows), _TOGETHER):
        some = rows[start : start + _TOGETHER]
        count = len(some)
        given: Mapping[str, npt.NDArray[Any]] = {
            **owned,
            "slot": np.zeros(count, np.int32),
            "order": np.arange(count, dtype=np.int32),
            "request.ids": some.request_ids.numpy()[:, None],
            "request.numbers": some.request_numbers.numpy()[:, None],
            "item.ids": some.item_ids.numpy()[:, None],
            "item.numbers": some.item_numbers.numpy()[:, None],
        }
        parts.append(session.run(["logit"], {name: given[name] for name in inputs})[0][:, 0])
    return np.concatenate(parts)


def _probability(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -logit))

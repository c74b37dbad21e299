"""Logs of the tiny bundle's answers, made without a service."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.pack import DomainPack, version
from service.exposures import Exposure, ExposureLog
from service.question import Question
from service.telemetry import Metrics
from tests.service import bundles


def probabilities(pack: DomainPack, user: dict[str, Any], ids: list[int]) -> np.ndarray:
    """In numpy, (B,)."""
    known = {
        name: dict(zip(bundles.ITEMS["item.id"], column, strict=True))
        for name, column in bundles.ITEMS.items()
    }
    request = {f"user.{name}": [value] for name, value in user.items()}
    items: dict[str, list[Any]] = {name: [column.get(each) for each in ids] for name, column in known.items()}
    items["item.id"] = ids
    logit = bundles.logits(pack.tensors, bundles.inputs_of(request, items, len(ids)))
    scale, shift = pack.calibration
    found: np.ndarray = 1 / (1 + np.exp(-(scale * logit + shift)))
    return found


def answer(at: int, pack: DomainPack, user: dict[str, Any], ids: list[int], **changes: Any) -> Exposure:
    """What the service logs of an answer."""
    return Exposure(
        request_id=f"r{at}",
        time=1e9 + at,
        unit=str(user.get("id", at)),
        experiment=None,
        arm=None,
        domain=pack.domain,
        bundle=bundles.BUNDLE,
        pack=version(pack.to_bytes()),
        propensity=None,
        status=200,
        ms=1.0,
        pack_domain=None,
        items=None,
        request=Question(user, {}, None, {}),
        shadow_pack=None,
        ids=ids,
        scores=probabilities(pack, user, ids),
    )._replace(**changes)


def write(folder: Path, rows: list[Exposure], clicks: list[tuple[str, str]] = []) -> Path:  # noqa: B006
    """A log with these rows and clicks."""
    with closing(ExposureLog(folder, Metrics(), part_seconds=600, part_bytes=10**9, most=10**9)) as log:
        for row in rows:
            log.add(row)
        log.tell([(request, item, 2e9, "click") for request, item in clicks])
    return folder

"""What float16 costs on the device: AUC and calibration of simulated clicks, beside torch's float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from export import precision
from loadtest.exported import export
from loadtest.gpu_stage import Ground
from service.contract.pack import GENERAL, DomainPack
from service.engines import ort_cuda
from service.engines.ort_cuda import Options
from training.data.batches import Rows

_RECIPE = {
    "data": {"name": "synthetic"},
    "backbone": {"name": "deepfm", "hidden": [64, 32]},
    "joint": {"epochs": 2},
    "tuning": {"epochs": 1},
}


def measure(ground: Ground) -> dict[str, Any]:
    """By domain: rows, the largest difference in probability, AUC and its loss, ECE and how it moved.

    Each test row is a request of one candidate by its fields, many in a launch.
    """
    made = export(ground.folder / "precision", {}, _RECIPE, many=True)
    model, bundle = made.model, made.bundle
    rows = Rows.encode(made.prepared.split("test"), model.schema, model.domains)
    options = Options(device=ground.size.device, dtype="float16", candidates=1, pieces=(1, 2048))
    engine = ort_cuda.open(bundle, 1, options)
    names = {"request.ids": "request_ids", "request.numbers": "request_numbers"}
    names |= {"item.ids": "item_ids", "item.numbers": "item_numbers"}
    found: dict[str, Any] = {}
    try:
        for domain, data in bundle.packs():
            if domain == GENERAL:
                continue
            pack = DomainPack.from_bytes(data, bundle.base)
            own = rows.of(model.domains.index(domain))
            columns = {name: getattr(own, column).numpy() for name, column in names.items()}
            handle = engine.load(pack)
            jobs = engine.jobs(
                [
                    ({name: each[at : at + 1] for name, each in columns.items()}, handle)
                    for at in range(len(own))
                ]
            )
            engine.line.do(partial(engine.answer, jobs))
            a, b = (float(each) for each in pack.calibration)
            exact = a * model.logits(own, domain).numpy().astype(np.float64) + b
            logit = (
                a * np.concatenate([job.logit for job in jobs if job.logit is not None]).astype(np.float64)
                + b
            )
            one = precision.compared(domain, "float16", exact, logit, own.label.numpy())
            found[domain] = one.model_dump(exclude={"dtype", "domain"})
    finally:
        engine.close()
    return found

"""What is in a stored pack, and how two of them differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from service import lifecycle
from service.contract.bundle import Bundle
from service.contract.errors import PackError, UnknownVersion
from service.contract.pack import DomainPack
from service.engines._protocol import Engine
from service.records import Contents, GoldenDifference, PackDifference, StoredTensor, TensorDifference
from service.resident import parse, sigmoid
from service.stores._protocol import Domain, PackStore, Version


async def contents(store: PackStore, domain: Domain, start: str, bundle: Bundle) -> Contents:
    """What a stored version holds.

    Args:
        store: where it is.
        domain: whose.
        start: a version, or a unique beginning of one.
        bundle: that it belongs to.

    Raises:
        UnknownVersion: there is no such version, or there are several.
        PackError: it is damaged, or of another bundle.
    """
    [(_, version)] = await lifecycle.resolve(store, [(domain, start)])
    data = await store.fetch(domain, version, bundle.manifest.most_pack_bytes)
    return await asyncio.to_thread(_contents, data, domain, version, bundle)


async def difference(
    store: PackStore, domain: Domain, a: str | None, b: str | None, *, bundle: Bundle, engine: Engine
) -> PackDifference:
    """How two stored versions differ, and how far apart they score.

    Args:
        store: where they are.
        domain: whose.
        a: a version, or a unique beginning of one; by default where a rollback would go.
        b: likewise; by default the live one.
        bundle: that they belong to.
        engine: what scores the golden rows.

    Raises:
        UnknownVersion: there is no such version, or there are several.
        PackError: one is damaged, or of another bundle, or cannot be scored.
    """
    pointers = await store.live()
    live = pointers.get(domain)
    if b is None and live is None:
        raise UnknownVersion(f"nothing is live in {domain}")
    if a is None and domain in pointers:
        a = lifecycle.previous(await store.history(domain), live)
    if a is None:
        raise UnknownVersion(f"{domain} has no earlier version to compare with")
    (_, one), (_, other) = await lifecycle.resolve(store, [(domain, a), (domain, b or live or "")])
    most = bundle.manifest.most_pack_bytes
    blobs = await store.fetch(domain, one, most), await store.fetch(domain, other, most)

    def compare() -> PackDifference:
        packs = parse(blobs[0], domain, one, bundle), parse(blobs[1], domain, other, bundle)
        return _difference((one, other), *packs, engine)

    return await asyncio.to_thread(compare)


def _contents(data: bytes, domain: Domain, version: Version, bundle: Bundle) -> Contents:
    pack = parse(data, domain, version, bundle)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header.pop("__metadata__")["mdctr"])
    return Contents(
        domain=domain,
        version=version,
        bytes=len(data),
        header=about,
        tensors=[_stored(name, tensor, header) for name, tensor in sorted(pack.tensors.items())],
        calibration=_calibration(pack),
        golden_rows=len(pack.golden.logit),
    )


_STORED: Mapping[str, str] = {"F16": "float16", "F32": "float32", "I32": "int32"}
"""The names of safetensors' types."""


def _stored(name: str, tensor: npt.NDArray[Any], header: Mapping[str, Any]) -> StoredTensor:
    parts = [header[key] for kind in ("pack", "values", "rows") if (key := f"{kind}.{name}") in header]
    sparse = f"rows.{name}" in header
    return StoredTensor(
        name=name,
        shape=list(tensor.shape),
        dtype=str(tensor.dtype),
        stored=_STORED.get(parts[0]["dtype"], parts[0]["dtype"]),
        rows=header[f"rows.{name}"]["shape"][0] if sparse else None,
        bytes=sum(part["data_offsets"][1] - part["data_offsets"][0] for part in parts),
    )


def _difference(
    versions: tuple[Version, Version], one: DomainPack, other: DomainPack, engine: Engine
) -> PackDifference:
    scales = _calibration(one), _calibration(other)
    return PackDifference(
        domain=other.domain,
        a=versions[0],
        b=versions[1],
        tensors=[_tensor(name, one.tensors[name], tensor) for name, tensor in sorted(other.tensors.items())],
        calibration_a=scales[0],
        calibration_b=scales[1],
        calibration=(scales[1][0] - scales[0][0], scales[1][1] - scales[0][1]),
        golden=_golden(one, other, engine),
    )


def _tensor(name: str, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> TensorDifference:
    off = np.abs(other.astype(np.float64) - one.astype(np.float64))
    rows = off.reshape(len(off), off[:1].size) if off.ndim else off.reshape(1, 1)
    return TensorDifference(
        name=name,
        rows=int((rows > 0).any(axis=1).sum()),
        of_rows=len(rows),
        numbers=int((off > 0).sum()),
        of_numbers=off.size,
        largest=float(off.max(initial=0.0)),
        rms=_rms(off),
    )


def _golden(one: DomainPack, other: DomainPack, engine: Engine) -> GoldenDifference:
    logits, probabilities = [], []
    with ExitStack() as stack:
        for pack in (one, other):
            handle = engine.load(pack)
            stack.callback(engine.release, handle)
            try:
                logit = engine.score(other.golden.inputs, handle).astype(np.float64)
            except Exception as error:  # a runtime's errors have no common class
                raise PackError(f"the engine cannot score it: {type(error).__name__}") from error
            if not np.isfinite(logit).all():
                raise PackError("it has no finite score for each of the golden rows")
            scale, shift = _calibration(pack)
            logits.append(logit)
            probabilities.append(sigmoid(scale * logit + shift))
    off = np.abs(logits[1] - logits[0])
    return GoldenDifference(
        rows=len(off),
        largest=float(off.max(initial=0.0)),
        rms=_rms(off),
        probability=float(np.abs(probabilities[1] - probabilities[0]).max(initial=0.0)),
    )


def _rms(off: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt((off**2).mean())) if off.size else 0.0


def _calibration(pack: DomainPack) -> tuple[float, float]:
    scale, shift = (float(value) for value in pack.calibration)
    return scale, shift

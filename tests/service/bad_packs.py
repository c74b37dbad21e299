"""Packs that nobody may keep, and the reason that each is refused for."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from service.contract.pack import DomainPack, Golden
from tests.service import bundles

PACK = bundles.make_pack("books", 7)
GOOD = PACK.to_bytes()


def changed(domain: Any = "books", **parts: Any) -> bytes:
    """The good pack with other parts."""
    whole = {"bundle": PACK.bundle, "domain": domain, "tensors": PACK.tensors, "golden": PACK.golden, **parts}
    return DomainPack(**whole).to_bytes()


def framed(header: bytes, body: bytes = b"") -> bytes:
    """Bytes in the outer form of a safetensors file."""
    return struct.pack("<Q", len(header)) + header + body


def _announcing(shape: list[int], end: int) -> bytes:
    size = struct.unpack("<Q", GOOD[:8])[0]
    header = json.loads(GOOD[8 : 8 + size])
    header["pack.rows"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    return framed(json.dumps(header).encode(), GOOD[8 + size :])


_ABOUT = json.dumps({"__metadata__": {"mdctr": json.dumps({"format": 2, "bundle": bundles.BUNDLE})}})

BAD: Mapping[str, tuple[bytes, str]] = {
    "of another bundle": (changed(bundle="other"), "of bundle other"),
    "not finite": (changed(tensors={**PACK.tensors, "bias": np.array([np.nan], np.float32)}), "not finite"),
    "a tensor is missing": (
        changed(tensors={name: value for name, value in PACK.tensors.items() if name != "bias"}),
        "missing tensor: bias",
    ),
    "a tensor too many": (changed(tensors={**PACK.tensors, "more": PACK.tensors["bias"]}), "unknown tensor"),
    "of another shape": (changed(tensors={**PACK.tensors, "bias": np.zeros(2, np.float32)}), "bias is"),
    "of another type": (changed(tensors={**PACK.tensors, "bias": np.zeros(1, np.int32)}), "bias is int32"),
    "truncated": (GOOD[:-1], "not a pack"),
    "truncated in its header": (GOOD[:40], "not a pack"),
    "empty": (b"", "not a pack"),
    "no pack at all": (b"no pack at all", "not a pack"),
    "a huge header is announced": (struct.pack("<Q", 2**63) + GOOD[8:], "not a pack"),
    "a huge tensor is announced": (_announcing([2**40], 2**42), "not a pack"),
    "sizes that overflow": (_announcing([2**62, 8], 0), "not a pack"),
    "larger than any pack": (GOOD + bytes(2_000_000), "a pack of this bundle has at most"),
    "a header too deep": (framed(b"[" * 100_000), "not a pack"),
    "a header of another kind": (framed(b"[]"), "not a pack"),
    "no domain": (framed(_ABOUT.encode()), "not a pack"),
    "a domain that is a number": (changed(domain=5), "not a domain's name"),
    "a domain that cannot be": (changed(domain="../x"), "not a domain's name"),
    "golden rows off": (
        changed(golden=Golden(PACK.golden.inputs, PACK.golden.logit + np.float32(0.01))),
        "golden rows are off",
    ),
    "no golden rows": (
        changed(golden=Golden(PACK.golden.inputs, PACK.golden.logit[:0])),
        "golden logits must be",
    ),
    "ids outside the table": (
        changed(
            golden=Golden(
                {**PACK.golden.inputs, "item.ids": PACK.golden.inputs["item.ids"] + 1000}, PACK.golden.logit
            )
        ),
        "cannot score it",
    ),
    "a calibration that turns": (changed(calibration=np.array([-1, 0], np.float32)), "calibration must be"),
}

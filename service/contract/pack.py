"""`DomainPack`: everything a domain owns, in one small immutable file.

A pack is a safetensors file. `pack.<name>` are the domain-owned inputs of the bundle's graph.
`calibration` is (a, b) float32: the served logit is a * logit + b. It stands here because it must change
together with the parameters. `golden.<input>` and `golden.logit` are one request with its candidates,
and the logits (before calibration) that training computed for them; who loads a pack scores them first.
The header, under the one key `mdctr`, is a JSON object with `format`, `bundle` and `domain`.

A pack's version is the content hash of the file, so equal packs have equal versions and a reader can
prove what it got. When a pack was made, and from which run, is in the store's history and not in the
file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.contract import hashing
from service.contract.errors import PackError
from service.contract.manifest import GraphInput, Manifest

FORMAT = 1
GENERAL = "_general"
"""The general pack's domain: it answers for domains that have none. No domain can be called so."""

_DOMAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DTYPES: Mapping[str, npt.DTypeLike] = {"float32": np.float32, "int32": np.int32}


def valid_domain(name: str) -> bool:
    """Whether a domain may be called so: `[a-z0-9][a-z0-9._-]{0,63}`."""
    return _DOMAIN.fullmatch(name) is not None


@dataclass(frozen=True)
class Golden:
    """One request with its candidates, and what training computed for it."""

    inputs: Mapping[str, npt.NDArray[Any]]
    """Request and item inputs of the graph, by name."""
    logit: npt.NDArray[np.float32]
    """(B,) before calibration."""


@dataclass(frozen=True)
class DomainPack:
    """The tensors of one domain, by input name without `pack.`, and how to check them."""

    bundle: str
    domain: str
    tensors: Mapping[str, npt.NDArray[Any]]
    golden: Golden
    calibration: npt.NDArray[np.float32] = field(default_factory=lambda: np.array([1.0, 0.0], np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of the domain-owned tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to_bytes(self) -> bytes:
        """The pack as a file. Equal packs give equal bytes."""
        # One metadata key only: safetensors writes several in no fixed order.
        header = json.dumps({"format": FORMAT, "bundle": self.bundle, "domain": self.domain}, sort_keys=True)
        tensors = {
            **{f"pack.{name}": tensor for name, tensor in self.tensors.items()},
            **{f"golden.{name}": tensor for name, tensor in self.golden.inputs.items()},
            "golden.logit": self.golden.logit,
            "calibration": self.calibration,
        }
        # safetensors writes the buffer as it lies, whatever the strides say. (`ascontiguousarray` would turn
        # a scalar into a vector.)
        return save(
            {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, {"mdctr": header}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> DomainPack:
        """Read a pack.

        Raises:
            PackError: these are not the bytes of a pack of this format.
        """
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["mdctr"])
            tensors = load(data)
            if header["format"] != FORMAT:
                raise PackError(f"the pack has format {header['format']}; this version reads {FORMAT}")
            golden = _under("golden.", tensors)
            logit = golden.pop("logit")
            owned = _under("pack.", tensors)
            return cls(
                header["bundle"], header["domain"], owned, Golden(golden, logit), tensors["calibration"]
            )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise PackError(f"not a pack: {type(error).__name__}: {error}") from error

    def check(self, manifest: Manifest) -> None:
        """Refuse a pack that does not belong to a bundle, before anything is computed with it.

        Raises:
            PackError: it is of another bundle, or an input is missing, unknown, of another shape or type,
                or not finite.
        """
        if self.bundle != manifest.bundle:
            raise PackError(f"the pack is of bundle {self.bundle}, not {manifest.bundle}")
        if self.domain != GENERAL and not valid_domain(self.domain):
            raise PackError(f"{self.domain!r} is not a domain's name")
        if (
            self.golden.logit.ndim != 1
            or not len(self.golden.logit)
            or not np.isfinite(self.golden.logit).all()
        ):
            raise PackError("golden logits must be finite, and at least one")
        owned = {spec.name.removeprefix("pack."): spec for spec in manifest.inputs if spec.scope == "pack"}
        asked = {spec.name: spec for spec in manifest.inputs if spec.scope != "pack"}
        for what, have, want in ("tensor", self.tensors, owned), ("golden input", self.golden.inputs, asked):
            if missing := want.keys() - have.keys():
                raise PackError(f"missing {what}: {', '.join(sorted(missing))}")
            if unknown := have.keys() - want.keys():
                raise PackError(f"unknown {what}: {', '.join(sorted(unknown))}")
            for name, spec in want.items():
                _check_tensor(name, have[name], spec, len(self.golden.logit))
        if (
            self.calibration.shape != (2,)
            or not np.isfinite(self.calibration).all()
            or self.calibration[0] <= 0
        ):
            raise PackError("calibration must be two finite numbers, the first above 0")


def version(data: bytes) -> str:
    """The version of a pack's bytes: their content hash, 16 hexadecimal digits."""
    return hashing.content(data)


def _under(prefix: str, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_tensor(name: str, tensor: npt.NDArray[Any], spec: GraphInput, rows: int) -> None:
    shape = tuple(rows if size == "B" else size for size in spec.shape)
    if tensor.shape != shape or tensor.dtype != _DTYPES[spec.dtype]:
        raise PackError(f"{name} is {tensor.dtype}{list(tensor.shape)}, not {spec.dtype}{list(shape)}")
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise PackError(f"{name} is not finite")

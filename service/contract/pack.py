"""`DomainPack`: everything a domain owns, in one small immutable file.

A pack is a safetensors file. `pack.<name>` are the domain-owned inputs of the bundle's graph, in the
smallest form that loses nothing: float16 where every number is one, and, where most rows are those of the
bundle's own general pack, only the others: `rows.<name>`, which they are (ascending int32), and
`values.<name>`, what stands there. `calibration` is (a, b) float32: the served logit is a * logit + b. It
stands here because it must change together with the parameters. `golden.<input>` and `golden.logit` are one
request with its candidates, and the logits (before calibration) that training computed for them; who loads a
pack scores them first.
The header, under the one key `mdctr`, is a JSON object with `format`, `bundle` and `domain`, and with
`base`, the version of that general pack, where `rows.` are.

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
from service.contract.manifest import DOMAIN, GraphInput, Manifest

FORMAT = 2
_READ = (1, 2)
"""Formats that can be read; 1 had float32 and int32 tensors only."""
GENERAL = "_general"
"""The general pack's domain: it answers for domains that have none. No domain can be called so."""

_DOMAIN = re.compile(DOMAIN)
_HALF = np.dtype(np.float16)
_ENTRY = 100
"""Bytes of a file's header, about, that one more tensor in it takes."""
_DTYPES: Mapping[str, npt.DTypeLike] = {"float32": np.float32, "int32": np.int32}


def valid_domain(name: str) -> bool:
    """Whether a domain may be called so."""
    return _DOMAIN.fullmatch(name) is not None


@dataclass(frozen=True)
class Golden:
    """One request with its candidates, and what training computed for it."""

    inputs: Mapping[str, npt.NDArray[Any]]
    """Request and item inputs of the graph, by name."""
    logit: npt.NDArray[np.float32]
    """(B,) before calibration."""


@dataclass(frozen=True)
class Base:
    """The general pack that a bundle was made with, as that from which its domains' packs differ.

    It is the bundle's and not the store's, so promoting another general pack changes no domain.
    """

    version: str
    tensors: Mapping[str, npt.NDArray[Any]]


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

    def to_bytes(self, base: Base | None = None) -> bytes:
        """The pack as a file. Equal packs give equal bytes, under the same base.

        Args:
            base: what the reader has, too; without it every row is written.
        """
        parts: dict[str, npt.NDArray[Any]] = {}
        header: dict[str, Any] = {"format": FORMAT, "bundle": self.bundle, "domain": self.domain}
        for name, tensor in self.tensors.items():
            common = base.tensors.get(name) if base else None
            rows = _changed(tensor, common)
            if base and rows is not None:
                parts[f"rows.{name}"], parts[f"values.{name}"] = rows, _smallest(tensor[rows])
                header["base"] = base.version
            else:
                parts[f"pack.{name}"] = _smallest(tensor)
        parts |= {f"golden.{name}": tensor for name, tensor in self.golden.inputs.items()}
        parts |= {"golden.logit": self.golden.logit, "calibration": self.calibration}
        # One metadata key only: safetensors writes several in no fixed order. And it writes the buffer as it
        # lies, whatever the strides say. (`ascontiguousarray` would turn a scalar into a vector.)
        return save(
            {name: np.asarray(tensor, order="C") for name, tensor in parts.items()},
            {"mdctr": json.dumps(header, sort_keys=True)},
        )

    @classmethod
    def from_bytes(cls, data: bytes, base: Base | None = None) -> DomainPack:
        """Read a pack.

        Args:
            data: what `to_bytes` gave.
            base: of the pack's bundle.

        Raises:
            PackError: these are not the bytes of a pack of a format that is read, or they hold differences
                from another base.
        """
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["mdctr"])
            parts = load(data)
            if header["format"] not in _READ:
                raise PackError(f"the pack has format {header['format']}; this version reads {FORMAT}")
            golden = _under("golden.", parts)
            logit = golden.pop("logit")
            owned = {name: _whole(tensor) for name, tensor in _under("pack.", parts).items()}
            values = _under("values.", parts)
            for name, rows in _under("rows.", parts).items():
                if base is None or header["base"] != base.version:
                    raise PackError(f"it holds differences from general pack {header['base']}, not from ours")
                owned[name] = _filled(name, base, rows, _whole(values[name]))
            return cls(header["bundle"], header["domain"], owned, Golden(golden, logit), parts["calibration"])
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PackError(f"not a pack: {type(error).__name__}: {error}") from error

    def check(self, manifest: Manifest) -> None:
        """Refuse a pack that does not belong to a bundle, before anything is computed with it.

        Raises:
            PackError: it is of another bundle, or an input is missing, unknown, of another shape or type,
                or not finite.
        """
        if self.bundle != manifest.bundle:
            raise PackError(f"the pack is of bundle {self.bundle}, not {manifest.bundle}")
        if not isinstance(self.domain, str) or (self.domain != GENERAL and not valid_domain(self.domain)):
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


def _changed(tensor: npt.NDArray[Any], common: npt.NDArray[Any] | None) -> npt.NDArray[np.int32] | None:
    """The rows (n,) that differ, where writing them takes less than writing all; None where it does not."""
    if common is None or not tensor.ndim or (tensor.shape, tensor.dtype) != (common.shape, common.dtype):
        return None
    # Bits, not numbers: 0 and -0 are not the same file.
    one, other = (np.ascontiguousarray(array).view(np.uint32) for array in (tensor, common))
    differs = (one != other).any(axis=tuple(range(1, tensor.ndim)))
    rows = np.flatnonzero(differs).astype(np.int32)
    sparse = rows.nbytes + _smallest(tensor[rows]).nbytes + _ENTRY
    return rows if sparse < _smallest(tensor).nbytes else None


def _smallest(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers, as float16 if they all are."""
    if tensor.dtype != np.float32:
        return tensor
    with np.errstate(over="ignore"):
        half = tensor.astype(_HALF)
    return half if np.array_equal(half.astype(np.float32), tensor, equal_nan=True) else tensor


def _whole(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return tensor.astype(np.float32) if tensor.dtype == _HALF else tensor


def _filled(name: str, base: Base, rows: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The base's tensor with other rows.

    Raises:
        PackError: it has no such rows.
    """
    whole = np.array(base.tensors[name])
    ascending = rows.dtype == np.int32 and rows.ndim == 1 and (not len(rows) or rows[0] >= 0)
    # Compared, and not subtracted: a difference of two int32 may wrap.
    ascending = ascending and bool((rows[1:] > rows[:-1]).all()) and (not len(rows) or rows[-1] < len(whole))
    like = (values.shape[1:], values.dtype) == (whole.shape[1:], whole.dtype)
    if not ascending or not like or len(values) != len(rows):
        raise PackError(
            f"the rows of {name} are not rows of the general pack's, or not as many as its values"
        )
    whole[rows] = values
    return whole


def _under(prefix: str, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_tensor(name: str, tensor: npt.NDArray[Any], spec: GraphInput, rows: int) -> None:
    shape = tuple(rows if size == "B" else size for size in spec.shape)
    if tensor.shape != shape or tensor.dtype != _DTYPES[spec.dtype]:
        raise PackError(f"{name} is {tensor.dtype}{list(tensor.shape)}, not {spec.dtype}{list(shape)}")
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise PackError(f"{name} is not finite")

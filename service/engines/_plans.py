"""`Plans`: what TensorRT made of a bundle's graphs for one kind of GPU, and whether it fits this one.

Plans are no part of a bundle: they are made where the GPU is, they fit one version of TensorRT and one
compute capability, and they can be made again at any time. So they are not in the bundle's manifest, which is
of what export made, and lie in a folder of their own, by default `engines` in the bundle's:

    engines/sm_90/plans.json        this table
    engines/sm_90/graph.plan        from the bundle's graph
    engines/sm_90/rows.plan         from its graph over item tables, if it has one
    engines/sm_90.timing            what the builder measured; only to build faster again

The table has the checksums of plans, and of the files of the bundle that they were made from; these are the
manifest's own, which `Bundle.open` compared with the files. A plan is a program: who can write to this folder
decides what runs in the service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.contract import files, hashing
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.manifest import Sha256

FOLDER = "engines"
TABLE = "plans.json"


class Plan(BaseModel):
    """One plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """In the table's folder."""
    sha256: Sha256
    graph: str
    """The ONNX file of the bundle that it was made from, or from whose float16 form."""
    sources: dict[str, Sha256]
    """Of that file, and of the files that it refers to, by their names in the bundle."""
    dtype: Literal["float32", "float16"]
    """Of the products; inputs, packs and logits are float32 either way."""
    sizes: tuple[int, ...]
    """Candidates of each optimisation profile, in the order of the profiles."""
    most_rows: dict[str, int]
    """Rows that a table of items may have, by graph input."""


class Plans(BaseModel):
    """The table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    bundle: str
    tensorrt: str
    """The version that built them, which alone can load them."""
    capability: str
    """The compute capability of the GPU that they were built on, as `9.0`."""
    version_compatible: bool
    """Whether the lean runtime of that version can load them, too."""
    plans: tuple[Plan, ...]

    def save(self, folder: Path) -> None:
        """Write the table, atomically."""
        files.write(folder / TABLE, self.model_dump_json(indent=1))

    def read(self, folder: Path) -> Mapping[str, bytes]:
        """The plans' bytes, by graph.

        Raises:
            BundleError: one is missing, or was changed.
        """
        found = {}
        for plan in self.plans:
            path = folder / plan.file
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() != plan.sha256:
                raise BundleError(f"{path} cannot be opened: it is missing or damaged")
            found[plan.graph] = data
        return found


def folder_of(capability: str) -> str:
    """The folder of a compute capability: `sm_90` for `9.0`."""
    return f"sm_{capability.replace('.', '')}"


def checksum(bundle: Bundle, name: str) -> str | None:
    """The SHA-256 of a bundle's file, the manifest's if it lists the file; None if there is no such file."""
    path = bundle.path / name
    return bundle.manifest.files.get(name) or (hashing.file(path) if path.is_file() else None)


def find(bundle: Bundle, folder: Path, capability: str, version: str, *, lean: bool) -> Plans:
    """The table of a bundle's plans for this GPU and this TensorRT.

    Args:
        bundle: whose graphs are to run.
        folder: of its plans for this compute capability.
        capability: this GPU's.
        version: of the TensorRT that is to load them.
        lean: whether that is the lean runtime.

    Raises:
        BundleError: there is none, or it is of another bundle, GPU or TensorRT; the text says how to build
            it.
    """
    table = folder / TABLE
    build = f"build it here: python -m export engine {bundle.path}"
    if not table.is_file():
        raise BundleError(f"{bundle.graph} cannot be opened: there is no {table}; {build}")
    try:
        plans = Plans.model_validate_json(table.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{table} cannot be opened: {error}; {build}") from error
    if misfit := _misfit(plans, bundle, capability, version, lean=lean):
        raise BundleError(f"{table} cannot be opened: {misfit}; {build}")
    return plans


def _misfit(plans: Plans, bundle: Bundle, capability: str, version: str, *, lean: bool) -> str | None:
    manifest = bundle.manifest
    pairs = (
        ("bundle", plans.bundle, manifest.bundle),
        ("compute capability", plans.capability, capability),
        ("TensorRT", plans.tensorrt, version),
    )
    for what, of, here in pairs:
        if of != here:
            return f"it is for {what} {of}, and this is {here}"
    if lean and not plans.version_compatible:
        return "it was built without --version-compatible, and this is the lean runtime"
    wanted = [manifest.graph, *([manifest.item_halves.graph] if manifest.item_halves else [])]
    have = {plan.graph: plan for plan in plans.plans}
    for graph in wanted:
        if graph not in have:
            return f"it has no plan of {graph}"
        if any(checksum(bundle, name) != sha256 for name, sha256 in have[graph].sources.items()):
            return f"{graph} has changed since"
    return None

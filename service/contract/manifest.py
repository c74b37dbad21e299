"""`Manifest`: what a bundle holds, and which inputs its graph has."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.contract import files
from service.contract.errors import BundleError

_BESIDE = 1_000_000
"""Bytes that a pack's header and golden rows may take."""
ITEM_ROWS = "item.rows"
"""Input of the graph over item tables: the row of each candidate."""
_LARGEST = 64_000_000
"""Bytes of a manifest; of ten thousand domains it has about two million."""


def _inside(name: str) -> str:
    """A file of the bundle's own folder: whatever it says, nothing else is read."""
    parts = PurePosixPath(name).parts
    if not name.isprintable() or not parts or parts[0] == "/" or ".." in parts or "\\" in name:
        raise ValueError("not a file within the bundle")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_File = Annotated[str, AfterValidator(_inside)]
DOMAIN = r"[a-z0-9][a-z0-9._-]{0,63}"
"""What a domain may be called, as a pattern."""
_Domain = Annotated[str, Field(pattern=f"^{DOMAIN}$")]
_Id = Annotated[str, Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]{0,199}$")]
"""What becomes the name of a folder, and a part of a key."""


class GraphInput(BaseModel):
    """One input of the graph.

    `scope` says how often it changes: a *pack* input with the domain's pack, a *request* input has one
    row a request, an *item* input one a candidate. `source` says where its values come from: `pack`, or
    `schema` for arrays that `FeatureSchema` encodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Literal["float32", "int32"]
    shape: tuple[int | Literal["B"], ...]
    """`B` is the number of candidates."""
    scope: Literal["pack", "request", "item"]
    source: Literal["pack", "schema"]


class ItemHalves(BaseModel):
    """What is computed of an item in advance, and the graph that reads it.

    A table has a row for each of the item table's. Rows do not depend on packs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph: _File
    """The ONNX file, relative to the bundle. It takes `item.rows` (B,) int32 and the tables in the place of
    the item inputs, and all other inputs of the bundle's graph."""
    maker: _File
    """The ONNX file that makes tables: from the item inputs of the bundle's graph to an output a table."""
    tables: dict[str, _File]
    """The file of each table, by graph input. Those that `maker` does not make are the item table's own."""


class ManyGraphs(BaseModel):
    """Graphs that score several requests at once, each under a pack of its own out of slots.

    `export.many` says what their inputs are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: _File
    """The ONNX file, relative to the bundle, that takes items by their fields."""
    rows: _File | None = None
    """The one that takes items by their rows; None if nothing is computed in advance."""


class Parity(BaseModel):
    """How far an engine's probabilities were from training's when the bundle was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    cases: int
    rows: int
    max_abs_diff: float
    budget: float
    beyond_float32: int = 0
    """Cases that `max_abs_diff` leaves out: numbers so large that training's own rounding is above the
    budget."""


class Precision(BaseModel):
    """What a domain's test rows lose to the type that a graph computes in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    domain: str
    rows: int
    max_abs_diff: float
    """Of probabilities."""
    auc: float | None
    """In float32; None where there are no clicks, or nothing else."""
    auc_loss: float
    """Below 0 where it is better by chance."""
    ece: float
    """In float32."""
    ece_change: float


class Manifest(BaseModel):
    """A bundle's table of contents: `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    bundle: _Id
    """`<name>-<first 8 of the body's hash>`: packs of one body never meet another's graph."""
    model: dict[str, Any]
    """The recipe that the run resolved, to read and to repeat."""
    schema_fingerprint: Sha256
    domains: tuple[_Domain, ...]
    """Domains that have a pack in the bundle; the general pack is not one of them."""
    inputs: tuple[GraphInput, ...]
    graph: _File
    """The ONNX file, relative to the bundle. Its one output is `logit` (B,) float32."""
    parity: tuple[Parity, ...]
    parameters: int
    """Of the whole model as one domain sees it."""
    parameters_of_domain: int
    """Of them, those that a domain owns."""
    parameters_tuned: int
    """Of those, the ones that are trained again on the domain's own rows."""
    item_halves: ItemHalves | None = None
    """None if nothing is computed in advance."""
    many: dict[Literal["float32", "float16"], ManyGraphs] = {}
    """By the type that their wide layers compute in; empty if the bundle was made without."""
    precision: tuple[Precision, ...] = ()
    """Of those that are not float32."""
    files: dict[_File, Sha256]
    """Every other file of the bundle."""

    @model_validator(mode="after")
    def _listed(self) -> Self:
        halves, many = self.item_halves, self.many.values()
        named = [self.graph, *(file for graphs in many for file in (graphs.fields, graphs.rows) if file)]
        named += [halves.graph, halves.maker, *halves.tables.values()] if halves else []
        if missing := sorted(set(named) - self.files.keys()):
            raise ValueError(f"without a checksum: {', '.join(missing)}")
        return self

    @property
    def pack_bytes(self) -> int:
        """Bytes of the tensors that a domain owns."""
        owned = (spec for spec in self.inputs if spec.scope == "pack")
        return 4 * sum(math.prod(size for size in spec.shape if size != "B") for spec in owned)

    @property
    def most_pack_bytes(self) -> int:
        """Bytes that a pack's file may have; a larger one is not even read."""
        return 2 * self.pack_bytes + _BESIDE  # its smallest form is never twice as large as its tensors

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: it is missing, or not a manifest of this format.
        """
        try:
            if path.stat().st_size > _LARGEST:
                raise BundleError(f"{path} has more than {_LARGEST} bytes")
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise BundleError(f"{path.parent} is not a bundle: it has no {path.name}") from error
        except (OSError, ValidationError) as error:
            raise BundleError(f"{path} cannot be read: {error}") from error

    def save(self, path: Path) -> None:
        """Write the manifest, atomically."""
        files.write(path, self.model_dump_json(indent=1))

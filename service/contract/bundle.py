"""`Bundle`: a folder that export made and that can be served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import hashing
from service.contract.errors import BundleError
from service.contract.items import ItemTable
from service.contract.manifest import Manifest
from service.contract.pack import GENERAL, Base, DomainPack, version
from service.contract.schema import FeatureSchema

MANIFEST = "manifest.json"
SCHEMA = "schema.json"
ITEMS = "items"
PACKS = "packs"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: graph, schema, item table, and the packs it was made with."""

    path: Path
    manifest: Manifest
    schema: FeatureSchema
    items: ItemTable

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a bundle after comparing every file with the manifest's checksum.

        Raises:
            BundleError: a file is missing, differs, or does not belong to the others.
        """
        manifest = Manifest.load(path / MANIFEST)
        folder = path.resolve()
        for name, expected in manifest.files.items():
            if not (path / name).is_file():
                raise BundleError(f"{path} is damaged: {name} is missing")
            # A link may lead elsewhere within the folder, as those of mounted volumes do.
            if not (path / name).resolve().is_relative_to(folder):
                raise BundleError(f"{path} is damaged: {name} leads out of it")
            if hashing.file(path / name) != expected:
                raise BundleError(f"{path} is damaged: {name} has another checksum than the manifest says")
        schema = FeatureSchema.load(path / SCHEMA)
        if schema.fingerprint != manifest.schema_fingerprint:
            raise BundleError(f"{path} is damaged: the schema is not the manifest's")
        return cls(path, manifest, schema, ItemTable.load(path / ITEMS))

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.path / self.manifest.graph

    @cached_property
    def tables(self) -> Mapping[str, npt.NDArray[Any]]:
        """What was computed of items in advance, by graph input: arrays (items + 1, ...), mapped.

        Raises:
            BundleError: one has not a row for each of the item table's.
        """
        halves = self.manifest.item_halves
        tables = {}
        for name, file in halves.tables.items() if halves is not None else ():
            try:
                table = np.asarray(np.load(self.path / file, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError) as error:
                raise BundleError(f"{self.path / file} is not a table of items: {error}") from error
            if len(table) != len(self.items.inputs):
                raise BundleError(f"{self.path / file} has {len(table)} rows, not {len(self.items.inputs)}")
            tables[name] = table
        return tables

    @property
    def item_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that is known of items in advance, by name of its file: the item table, and `tables`."""
        halves = self.manifest.item_halves
        of_files = {} if halves is None else {Path(file).stem: name for name, file in halves.tables.items()}
        return {**{stem: self.tables[name] for stem, name in of_files.items()}, **self.items.arrays}

    def tables_of(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What `tables` gives, of arrays as `item_arrays` names them."""
        halves = self.manifest.item_halves
        return (
            {} if halves is None else {name: arrays[Path(file).stem] for name, file in halves.tables.items()}
        )

    def packs(self) -> Iterator[tuple[str, bytes]]:
        """Domain and bytes of every pack the bundle was made with, the general one first."""
        for domain in (GENERAL, *self.manifest.domains):
            yield domain, (self.path / PACKS / f"{domain}.safetensors").read_bytes()

    @cached_property
    def base(self) -> Base:
        """What the packs of this bundle's domains may be differences from."""
        data = (self.path / PACKS / f"{GENERAL}.safetensors").read_bytes()
        return Base(version(data), DomainPack.from_bytes(data).tensors)
